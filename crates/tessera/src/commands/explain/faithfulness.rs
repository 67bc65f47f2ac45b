//! `tessera explain --faithfulness`: do attributions say what the model really used?

use std::fmt::Write;

use serde::Serialize;
use tessera_core::dist::Key;
use tessera_runtime::Session;
use tessera_runtime::reagent::faithful::{Faithful, Metrics, log_ratio_interval};
use tessera_runtime::reagent::{ReAGent, explain, leave_one_out, softmax};

use super::{Arguments, context};
use crate::Globals;
use crate::commands::result;
use crate::failure::BadUsage;
use crate::slow_bar::SlowBar;

/// Prompts of our own; in each line `\n` is a line end.
const PROMPTS: &str = include_str!("../../../../../bench/explain/prompts.txt");
/// Random attributions that are averaged.
const RANDOM: u32 = 8;

/// A log ratio with its interval.
#[derive(Debug, Clone, Copy, Serialize)]
struct Ratio {
    value: f64,
    low: f64,
    high: f64,
}

impl Ratio {
    fn of(pairs: &[(f64, f64)]) -> Self {
        let (value, low, high) = log_ratio_interval(pairs);
        Self { value, low, high }
    }

    fn verdict(self) -> &'static str {
        match (self.low > 0.0, self.high < 0.0) {
            (true, _) => "above random",
            (_, true) => "below random",
            _ => "not told apart from random",
        }
    }
}

#[derive(Debug, Serialize)]
struct Line {
    attribution: &'static str,
    sufficiency: Ratio,
    comprehensiveness: Ratio,
}

#[derive(Debug, Serialize)]
struct Measured {
    model: String,
    prompts: usize,
    tokens: usize,
    masks: u32,
    settings: ReAGent,
    /// Prompts of which a probe stopped.
    stopped: usize,
    /// Logarithms of the metric's sum over that of random attribution, over prompts.
    lines: Vec<Line>,
}

pub(super) fn run(
    globals: &Globals,
    arguments: &Arguments,
    settings: &ReAGent,
) -> anyhow::Result<()> {
    let prompts: Vec<String> = PROMPTS.lines().map(|line| line.replace("\\n", "\n")).collect();
    let count = arguments.prompts.unwrap_or(prompts.len()).min(prompts.len());
    if count == 0 || arguments.masks == 0 {
        return Err(BadUsage("prompts and masks: must be at least 1".to_owned()).into());
    }
    let session = arguments.flags.open(globals, &arguments.model, None)?;
    let bar = SlowBar::new("explaining", count as u64, globals.quiet);
    let (mut random, mut own, mut left) = (Vec::new(), Vec::new(), Vec::new());
    let (mut tokens, mut stopped) = (0, 0);
    for (i, prompt) in prompts.iter().take(count).enumerate() {
        let found = measure(&session, settings, prompt, arguments.masks)?;
        random.push(found.random);
        own.push(found.own);
        left.push(found.left);
        tokens += found.tokens;
        stopped += usize::from(found.stopped);
        bar.at(i as u64 + 1);
    }
    bar.clear();
    let line = |attribution, of: &[Metrics]| {
        let pairs = |pick: fn(&Metrics) -> f64| -> Vec<(f64, f64)> {
            of.iter().map(pick).zip(random.iter().map(pick)).collect()
        };
        Line {
            attribution,
            sufficiency: Ratio::of(&pairs(|m| m.sufficiency)),
            comprehensiveness: Ratio::of(&pairs(|m| m.comprehensiveness)),
        }
    };
    let measured = Measured {
        model: arguments.model.clone(),
        prompts: count,
        tokens,
        masks: arguments.masks,
        settings: settings.clone(),
        stopped,
        lines: vec![line("ReAGent", &own), line("leave-one-out", &left)],
    };
    result(globals, &measured, &describe(&measured))
}

struct Found {
    random: Metrics,
    own: Metrics,
    left: Metrics,
    tokens: usize,
    stopped: bool,
}

fn measure(
    session: &Session,
    settings: &ReAGent,
    prompt: &str,
    masks: u32,
) -> anyhow::Result<Found> {
    let (context, positions) = context(session, prompt, false)?;
    let backbone = session.backbone();
    let vocabulary = session.vocabulary();
    let found =
        explain(backbone, vocabulary, settings, &context, &positions, None, &mut |_, _| ())?;
    let falls = leave_one_out(backbone, &context, &positions, found.target)?;
    // What a step that replaced this token alone would add.
    let falls: Vec<f64> =
        falls.iter().map(|f| 4.0 * f.clamp(-1.0 + 1e-6, 1.0 - 1e-6).atanh()).collect();
    let faithful = Faithful::new(backbone, &context, &positions)?;
    let mut random = Metrics { sufficiency: 0.0, comprehensiveness: 0.0 };
    for number in 0..RANDOM {
        let key = Key::new(settings.seed, number, 0);
        let noise: Vec<f64> = (0..positions.len() as u32).map(|i| key.uniform(i)).collect();
        let one = faithful.metrics(&softmax(&noise), masks, u64::from(number))?;
        random.sufficiency += one.sufficiency / f64::from(RANDOM);
        random.comprehensiveness += one.comprehensiveness / f64::from(RANDOM);
    }
    Ok(Found {
        random,
        own: faithful.metrics(&found.scores, masks, settings.seed)?,
        left: faithful.metrics(&softmax(&falls), masks, settings.seed)?,
        tokens: positions.len(),
        stopped: !found.none_stopped,
    })
}

fn describe(m: &Measured) -> String {
    let mut text = String::new();
    let _ = writeln!(
        text,
        "{}: {} prompts, {} tokens, {} masks; a probe stopped on {} prompts. Log ratio to random \
         attribution, 95 % interval over prompts; above 0 is better than random.",
        m.model, m.prompts, m.tokens, m.masks, m.stopped
    );
    text.push_str(&format!(
        "{:<16}{:<56}comprehensiveness (Soft-NC)\n",
        "attribution", "sufficiency (Soft-NS)"
    ));
    let shown =
        |r: Ratio| format!("{:+.3} [{:+.3}, {:+.3}] {}", r.value, r.low, r.high, r.verdict());
    for line in &m.lines {
        let (ns, nc) = (shown(line.sufficiency), shown(line.comprehensiveness));
        let _ = writeln!(text, "{:<16}{ns:<56}{nc}", line.attribution);
    }
    text
}
