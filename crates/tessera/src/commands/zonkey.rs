//! `tessera zonkey`: a model that learns where to cut characters into segments (in builds with `--features
//! candle`): training, what it makes of a text, segments from noise.

use std::path::PathBuf;

#[cfg(not(feature = "candle"))]
use crate::Globals;
#[cfg(not(feature = "candle"))]
use crate::failure::BadUsage;

/// What `zonkey` takes.
#[derive(Debug, clap::Args)]
#[cfg_attr(not(feature = "candle"), allow(dead_code, reason = "read where there is candle"))]
pub(crate) struct Arguments {
    #[command(subcommand)]
    command: Task,
}

#[derive(Debug, clap::Subcommand)]
#[cfg_attr(not(feature = "candle"), allow(dead_code, reason = "read where there is candle"))]
enum Task {
    /// Train a model on a text; run again to go on where it was stopped.
    Train {
        /// A text file.
        text: PathBuf,
        /// Where the model lives. A run that is there goes on.
        #[arg(long, value_name = "FILE", default_value = "zonkey.safetensors")]
        out: PathBuf,
        /// Steps in all.
        #[arg(long, value_name = "N", default_value_t = 2000)]
        steps: u64,
        /// Documents of a step.
        #[arg(long, value_name = "N", default_value_t = 4)]
        documents: usize,
        /// Characters of a document.
        #[arg(long, value_name = "N", default_value_t = 96)]
        length: usize,
        /// The seed of weights, documents, starts and noise.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
        /// A setting of the method (`tessera methods show zonkey`); may be given several times.
        #[arg(long = "setting", value_name = "KEY=VALUE")]
        settings: Vec<String>,
    },
    /// Cut a text, make one vector of each segment and unfold it again.
    Show {
        /// A file of `train`.
        model: PathBuf,
        /// The text.
        text: String,
    },
    /// Make segments from noise.
    Sample {
        /// A file of `train`.
        model: PathBuf,
        /// Segments, 1 to 4096.
        #[arg(long, value_name = "N", default_value_t = 16)]
        count: usize,
        /// Steps from noise to segments, 1 to 1000.
        #[arg(long, value_name = "N", default_value_t = 50)]
        steps: usize,
        /// Equal seeds give equal segments.
        #[arg(long, value_name = "N", default_value_t = 1)]
        seed: u64,
    },
}

#[cfg(not(feature = "candle"))]
pub(crate) fn run(_: &Globals, _: &Arguments) -> anyhow::Result<()> {
    let what = "zonkey: its gradients are candle's, which this build lacks. Next: build with `--features candle`";
    Err(BadUsage(what.to_owned()).into())
}

#[cfg(feature = "candle")]
pub(crate) use with_candle::run;

#[cfg(feature = "candle")]
mod with_candle {
    use std::fmt::Write;
    use std::path::Path;
    use std::sync::atomic::Ordering;

    use anyhow::Context as _;
    use serde::Serialize;
    use tessera_core::entry::{find, read_as};
    use tessera_learn::zonkey::Settings;
    use tessera_learn::zonkey::report::{Cuts, Report, measure};
    use tessera_learn::zonkey::trainer::{Losses, Order, Run, open};
    use tessera_runtime::METHODS;

    use super::super::result;
    use super::{Arguments, Task};
    use crate::Globals;
    use crate::failure::BadUsage;
    use crate::interrupt;
    use crate::measuring::with_settings;
    use crate::slow_bar::SlowBar;

    /// Steps between two checkpoints.
    const CHECKPOINT: u64 = 100;

    #[derive(Serialize)]
    struct Trained {
        file: String,
        step: u64,
        steps: u64,
        weights: usize,
        seconds: f64,
        losses: Option<Losses>,
        report: Report,
    }

    #[derive(Serialize)]
    struct Shown {
        segments: Vec<String>,
        unfolded: Vec<String>,
        rebuilt: String,
    }

    #[derive(Serialize)]
    struct Sampled {
        segments: Vec<String>,
    }

    pub(crate) fn run(globals: &Globals, arguments: &Arguments) -> anyhow::Result<()> {
        match &arguments.command {
            Task::Train { text, out, steps, documents, length, seed, settings } => {
                let order =
                    Order { steps: *steps, documents: *documents, length: *length, seed: *seed };
                train(globals, text, out, order, settings)
            }
            Task::Show { model, text } => show(globals, model, text),
            Task::Sample { model, count, steps, seed } => {
                for (name, value, most) in [("count", *count, 4096), ("steps", *steps, 1000)] {
                    if !(1..=most).contains(&value) {
                        let what = format!("{name} = {value}: must be between 1 and {most}");
                        return Err(BadUsage(what).into());
                    }
                }
                let model = open(model)?;
                let segments = model.sample(*count, *steps, *seed)?;
                let segments: Vec<String> =
                    segments.iter().map(|s| model.decode(&s.characters[..s.length])).collect();
                let text = segments.iter().fold(String::new(), |all, s| all + &format!("{s:?}\n"));
                result(globals, &Sampled { segments }, &text)
            }
        }
    }

    fn train(
        globals: &Globals,
        text: &Path,
        out: &Path,
        order: Order,
        given: &[String],
    ) -> anyhow::Result<()> {
        let entry = find(METHODS, "zonkey")?;
        let call = with_settings(entry, given)?;
        let settings: Settings = read_as("zonkey", &entry.resolve(&call.settings)?)?;
        let read = std::fs::read_to_string(text)
            .with_context(|| format!("cannot read {}", text.display()))?;
        let mut run = Run::open(&read, settings, order, out)?;
        let cancel = interrupt::flag();
        let bar = SlowBar::new("zonkey", order.steps, globals.quiet);
        let started = std::time::Instant::now();
        let mut losses = None;
        while run.step() < order.steps && !cancel.load(Ordering::Relaxed) {
            losses = Some(run.advance()?);
            bar.at(run.step());
            if run.step().is_multiple_of(CHECKPOINT) {
                run.save()?;
            }
        }
        run.save()?;
        drop(bar);
        let (training, held_out) = run.text();
        let report = measure(run.model(), training, held_out, order.length)?;
        let trained = Trained {
            file: out.display().to_string(),
            step: run.step(),
            steps: order.steps,
            weights: run.model().parameters.count(),
            seconds: started.elapsed().as_secs_f64(),
            losses,
            report,
        };
        result(globals, &trained, &described(&trained))
    }

    fn described(t: &Trained) -> String {
        let r = &t.report;
        let mut text =
            format!("{}: {} weights after {} of {} steps\n", t.file, t.weights, t.step, t.steps);
        if let Some(l) = &t.losses {
            let _ = writeln!(
                text,
                "last step   {:.3} nats a character rebuilt, {:.3} = 1 - cos toward the data, a start in {:.1} \
                 characters; {:.0} s",
                l.reconstruction,
                l.mixed,
                1.0 / l.starts,
                t.seconds
            );
        }
        let _ = writeln!(
            text,
            "held out    {:.1} % of {} characters come back; {:.1} characters a segment",
            100.0 * r.rebuilt,
            r.characters,
            r.segment
        );
        let _ = writeln!(text, "agreement with words (F1)   learnt  random  even  entropy");
        for (what, cuts) in [
            ("begin behind a space", r.words),
            ("begin with a space", r.spaces),
            ("begin equally far from one", r.near),
        ] {
            let Cuts { learnt, random, even, entropy } = cuts;
            let _ = writeln!(
                text,
                "{what:<26}  {learnt:>6.2}  {random:>6.2}  {even:>4.2}  {entropy:>7.2}"
            );
        }
        let _ = writeln!(text, "learnt starts lie {} characters behind spaces", r.offset);
        text
    }

    fn show(globals: &Globals, model: &Path, text: &str) -> anyhow::Result<()> {
        let model = open(model)?;
        let ids = model.encode(text);
        let (starts, segments) = model.rebuilt(&ids)?;
        let ends = starts.iter().skip(1).copied().chain([ids.len()]);
        let shown = Shown {
            segments: starts.iter().zip(ends).map(|(&a, b)| model.decode(&ids[a..b])).collect(),
            unfolded: segments.iter().map(|s| model.decode(&s.characters[..s.length])).collect(),
            rebuilt: model.decode(&tessera_learn::zonkey::generate::joined(
                &starts,
                &segments,
                ids.len(),
            )),
        };
        let described = format!(
            "segments  {}\nunfolded  {}\nrebuilt   {}\n",
            shown.segments.join("|"),
            shown.unfolded.join("|"),
            shown.rebuilt
        );
        result(globals, &shown, &described)
    }
}
