//! A model's card: what it is, what it was made of, how well it does, how to make it again.

use std::fmt::Write;
use std::path::PathBuf;

use crate::Result;
use crate::files::write_whole;
use crate::trainer::{Line, Run};

impl Run {
    /// Writes `README.md` into the run's directory. `command` makes the model again; `held_out` is
    /// the figure in nats a token over `rows` rows; `hardware` says what trained it.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn write_card(
        &self,
        command: &str,
        (held_out, rows): (f64, usize),
        hardware: &str,
    ) -> Result<PathBuf> {
        let recipe = self.recipe();
        let (shape, training) = (self.shape(), &recipe.training);
        let progress = self.progress();
        let loss = self.log().iter().rev().find_map(|line| match line {
            Line::Step { loss, .. } => Some(*loss),
            Line::HeldOut { .. } => None,
        });
        let mut out = format!("# {}\n\n{}.\n\n", recipe.name, recipe.about);
        let mut row = |name: &str, value: String| {
            let _ = writeln!(out, "| {name} | {value} |");
        };
        row("what", "value".to_owned());
        row("---", "---".to_owned());
        row("weights", format!("{:.2} M, matrices in q8_0", shape.weights() as f64 / 1e6));
        row(
            "shape",
            format!(
                "{} layers, hidden {}, {} heads, feed forward {}, context {}, {} tokens",
                shape.layers, shape.hidden, shape.heads, shape.ffn, shape.context, shape.vocab
            ),
        );
        row(
            "texts",
            format!("{} documents, {} tokens", self.data().documents(), self.data().tokens()),
        );
        row(
            "steps",
            format!(
                "{} of {}, {} tokens each",
                self.step(),
                training.steps,
                training.rows() * shape.context
            ),
        );
        row("loss of the last step", format!("{:.3} nats a token", loss.unwrap_or(f64::NAN)));
        row(
            &format!("held-out {}", self.figure()),
            format!("{:.2} ({held_out:.4} nats a token, {rows} rows)", held_out.exp()),
        );
        row("time", format!("{:.0} s", self.seconds()));
        row(
            "speed",
            format!(
                "{:.0} tokens/s, {:.1} GFLOP/s, {:.0} % of the {:.0} that fused multiply-adds reach",
                progress.tokens_per_second,
                progress.flops / 1e9,
                100.0 * progress.flops / progress.peak,
                progress.peak / 1e9
            ),
        );
        row("hardware", hardware.to_owned());
        let _ = writeln!(out, "\nMade by\n");
        for line in recipe.data.made_by.iter().map(String::as_str).chain([command]) {
            let _ = writeln!(out, "    {line}");
        }
        let path = std::path::Path::new("README.md");
        let path = self.directory().join(path);
        write_whole(&path, out.as_bytes())?;
        Ok(path)
    }
}
