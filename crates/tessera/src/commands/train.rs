//! `tessera train`: makes a small model by a recipe.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};
use serde::Serialize;
use tessera_learn::export::Stored;
use tessera_learn::recipe::Recipe;
use tessera_learn::trainer::{Progress, Run};
use tessera_measure::machine::Machine;

use super::result;
use crate::Globals;
use crate::interrupt;

/// Time between two lines where there is no bar.
const PAUSE: Duration = Duration::from_secs(30);
/// Rows of the final held-out figure.
const ROWS: usize = 64;

/// What `train` takes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A recipe, such as crates/learn/recipes/tessera-mdlm.toml.
    recipe: PathBuf,
    /// Where the recipe's texts lie (default: here).
    #[arg(long, value_name = "DIRECTORY", default_value = ".")]
    data: PathBuf,
    /// Where the run lives (default: models/NAME). A run that is there goes on.
    #[arg(long, value_name = "DIRECTORY")]
    out: Option<PathBuf>,
    /// Steps instead of the recipe's; the schedule follows.
    #[arg(long, value_name = "N")]
    steps: Option<u64>,
    /// Stop after this step, as Ctrl-C would; the schedule stays.
    #[arg(long, value_name = "N")]
    until: Option<u64>,
    /// Start from the mean weights of this checkpoint, of a model of the same sizes.
    #[arg(long, value_name = "CHECKPOINT")]
    from: Option<PathBuf>,
    /// Only go on with a run that is there.
    #[arg(long)]
    resume: bool,
    /// Threads (default: all cores).
    #[arg(
        short = 't',
        long,
        value_name = "N",
        env = "TESSERA_THREADS",
        default_value_t = 0,
        hide_default_value = true
    )]
    threads: usize,
}

/// The outcome.
#[derive(Debug, Serialize)]
struct Trained {
    name: String,
    file: String,
    figure: &'static str,
    /// Nats a token over `rows` held-out rows.
    held_out: f64,
    rows: usize,
    seconds: f64,
    #[serde(flatten)]
    progress: Progress,
}

pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
    let mut recipe = Recipe::read(&arguments.recipe)?;
    if let Some(steps) = arguments.steps {
        recipe.training.steps = steps;
        recipe.training.warmup = recipe.training.warmup.min(steps);
    }
    let out = arguments.out.clone().unwrap_or_else(|| PathBuf::from("models").join(&recipe.name));
    if arguments.resume && !out.join("checkpoint").exists() {
        anyhow::bail!("{}: holds no run to go on with. Next: leave --resume out", out.display());
    }
    let threads = match arguments.threads {
        0 => std::thread::available_parallelism().map_or(1, usize::from),
        n => n,
    };
    let mut run = Run::open(recipe, &arguments.data, &out, threads)?;
    if let Some(from) = &arguments.from {
        run.start_from(from)?;
    }
    let cancel = interrupt::flag();
    let begun = run.step();
    let mut shown = Shown::new(globals);
    let until = arguments.until.unwrap_or(u64::MAX);
    if run.step() < until {
        run.train(&mut |progress| {
            shown.show(progress);
            progress.step < until && !cancel.load(Ordering::Relaxed)
        })?;
    }
    shown.clear();
    let rows = ROWS.min(run.data().held_out().len());
    let held_out = run.held_out(rows, run.recipe().training.strata)?;
    let file = run.export(Stored::Q8)?;
    let mut command = format!("tessera train {}", arguments.recipe.display());
    if let Some(steps) = arguments.steps {
        command += &format!(" --steps {steps}");
    }
    if let Some(from) = &arguments.from {
        command += &format!(" --from {}", from.display());
    }
    // A finished run that is only looked at again has no speed to say: its card stays.
    let card = match run.directory().join("README.md") {
        card if run.step() == begun && card.exists() => card,
        _ => run.write_card(&command, (held_out, rows), &Machine::here().line())?,
    };
    let progress = run.progress();
    let trained = Trained {
        name: run.recipe().name.clone(),
        file: file.display().to_string(),
        figure: run.figure(),
        held_out,
        rows,
        seconds: run.seconds(),
        progress,
    };
    let line = format!(
        "{} after {} of {} steps: held-out {} {:.2} ({held_out:.4} nats a token, {rows} rows); {}\n{} and {}\n",
        trained.name,
        progress.step,
        progress.steps,
        trained.figure,
        held_out.exp(),
        speed(&progress),
        file.display(),
        card.display(),
    );
    result(globals, &trained, &line)
}

fn speed(progress: &Progress) -> String {
    format!(
        "{:.0} tok/s, {:.1} GFLOP/s, {:.0} % of {:.0}",
        progress.tokens_per_second,
        progress.flops / 1e9,
        100.0 * progress.flops / progress.peak,
        progress.peak / 1e9
    )
}

/// A bar on a terminal, a line now and then elsewhere.
struct Shown {
    bar: Option<ProgressBar>,
    quiet: bool,
    last: Option<Instant>,
}

impl Shown {
    fn new(globals: &Globals) -> Self {
        let bar = (!globals.quiet && std::io::stderr().is_terminal()).then(|| {
            let bar = ProgressBar::new(0);
            if let Ok(style) =
                ProgressStyle::with_template("[{bar:30}] {pos}/{len} steps, {msg}, {prefix} left")
            {
                bar.set_style(style.progress_chars("=> "));
            }
            bar
        });
        Self { bar, quiet: globals.quiet, last: None }
    }

    fn show(&mut self, progress: &Progress) {
        let held_out = progress.held_out.map(|h| format!(", held out {h:.3}")).unwrap_or_default();
        let message = format!("loss {:.3}{held_out}, {}", progress.loss, speed(progress));
        let left = format!("{:.0} min", (progress.left / 60.0).ceil());
        match &self.bar {
            Some(bar) => {
                bar.set_length(progress.steps);
                bar.set_position(progress.step);
                bar.set_prefix(left);
                bar.set_message(message);
            }
            None if !self.quiet && self.last.is_none_or(|last| last.elapsed() >= PAUSE) => {
                self.last = Some(Instant::now());
                let _ = writeln!(
                    std::io::stderr(),
                    "step {}/{}: {message}, {left} left",
                    progress.step,
                    progress.steps
                );
            }
            None => {}
        }
    }

    fn clear(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
