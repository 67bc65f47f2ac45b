//! A generation as a person or a program reads it: text or JSON lines on stdout, progress on
//! stderr, statistics at the end.

use std::io::{self, Write};

use serde_json::json;
use tessera_runtime::{Control, Event, FinishReason, Outcome, Stats};

use crate::canvas_view::CanvasView;
use crate::slow_bar::SlowBar;

/// Listens to one generation.
pub(crate) struct Printer<'a, W: Write> {
    out: W,
    json: bool,
    prompt: SlowBar,
    canvas: Option<CanvasView<'a>>,
    /// Whether the text so far ends a line.
    at_line_start: bool,
    failure: Option<io::Error>,
}

impl<'a, W: Write> Printer<'a, W> {
    /// For a prompt of `tokens` tokens.
    pub(crate) fn new(out: W, json: bool, tokens: usize, quiet: bool) -> Self {
        let prompt = SlowBar::new("reading the prompt", tokens as u64, quiet);
        Self { out, json, prompt, canvas: None, at_line_start: true, failure: None }
    }

    /// Shows a canvas while it fills.
    #[must_use]
    pub(crate) fn watching(self, canvas: CanvasView<'a>) -> Self {
        Self { canvas: Some(canvas), ..self }
    }

    /// Takes one event.
    pub(crate) fn hear(&mut self, event: Event<'_>) -> Control {
        match event {
            Event::Prefill { done, .. } => self.prompt.at(done as u64),
            Event::PrefillDone { .. } => self.prompt.clear(),
            _ => {}
        }
        let frame = self.canvas.as_mut().and_then(|canvas| canvas.hear(&event));
        let drawn = frame.map_or(Ok(()), |f| self.out.write_all(f.as_bytes()));
        let drawn = drawn.and_then(|()| self.out.flush());
        let written = drawn.and_then(|()| {
            if self.json {
                serde_json::to_writer(&mut self.out, &event)
                    .map_err(io::Error::from)
                    .and_then(|()| writeln!(self.out))
                    .and_then(|()| self.out.flush())
            } else if let Event::Committed { text, .. } = event
                && !text.is_empty()
            {
                self.at_line_start = text.ends_with('\n');
                self.out.write_all(text.as_bytes()).and_then(|()| self.out.flush())
            } else {
                Ok(())
            }
        });
        match written {
            Ok(()) => Control::Continue,
            Err(error) => {
                // Nobody reads any more: no reason to go on.
                self.failure = Some(error);
                Control::Stop
            }
        }
    }

    /// Ends the output: the last line's end, or the summary as JSON.
    ///
    /// # Errors
    /// If the output could not be written, now or before.
    pub(crate) fn finish(mut self, outcome: &Outcome, seed: u64) -> io::Result<()> {
        if let Some(error) = self.failure {
            return Err(error);
        }
        if self.json {
            let stats = outcome.stats;
            let mut numbers = json!(stats);
            numbers["prefill_rate"] = json!(stats.prefill_rate());
            numbers["decode_rate"] = json!(stats.decode_rate());
            let mut summary = json!({
                "event": "done",
                "choices": outcome.choices,
                "stats": numbers,
                "seed": seed,
            });
            if let Some(population) = &outcome.population {
                summary["population"] = json!(population);
            }
            writeln!(self.out, "{summary}")?;
        } else if !self.at_line_start {
            writeln!(self.out)?;
        }
        self.out.flush()
    }
}

/// One line of statistics.
pub(crate) fn stats_line(stats: &Stats, reason: FinishReason, seed: u64, most: usize) -> String {
    let computed = stats.prompt_tokens - stats.reused_tokens;
    let reused = match stats.reused_tokens {
        0 => String::new(),
        n => format!(" (+{n} reused)"),
    };
    let why = match reason {
        FinishReason::Length => format!("stopped after {most} tokens (-n)"),
        FinishReason::ContextFull => "stopped: the context is full (-c)".to_owned(),
        FinishReason::Stop { .. } => "stopped at a --stop text".to_owned(),
        reason => reason.word().to_owned(),
    };
    let asked = match stats.constraint {
        None => String::new(),
        Some(c) if c.masks > 0 => format!(", {} masks and {} questions", c.masks, c.evaluations),
        Some(c) => format!(", {} questions", c.evaluations),
    };
    let drafted = match stats.drafted_tokens {
        0 => String::new(),
        n => format!(", {} of {n} guesses right", stats.accepted_tokens),
    };
    let forgotten = match stats.forgotten() {
        0.0 => String::new(),
        share => format!(
            ", forgot {:.0}% of the cache ({:.1} of {:.1} MB left)",
            100.0 * share,
            stats.cache_bytes as f64 / 1e6,
            stats.peak_cache_bytes as f64 / 1e6,
        ),
    };
    let read = match stats.read() {
        share if share > 0.995 => String::new(),
        share => format!(", read {:.0}% of its rows", 100.0 * share),
    };
    let filled = match stats.denoised {
        None => String::new(),
        Some(d) if d.guide_passes > 0 => {
            format!(", {} rounds, {} passes of the guide", d.rounds, d.guide_passes)
        }
        Some(d) => format!(", {} rounds", d.rounds),
    };
    format!(
        "[prompt {computed} tokens{reused}, {:.1} tok/s · answer {} tokens, {:.1} tok/s · {} \
         passes{filled}{drafted}{asked}{forgotten}{read} · {why} · seed {seed}]",
        stats.prefill_rate(),
        stats.drawn_tokens - usize::from(matches!(reason, FinishReason::End { .. })),
        stats.decode_rate(),
        stats.passes,
    )
}

#[cfg(test)]
mod tests {
    use tessera_runtime::Completion;

    use super::*;

    fn outcome() -> Outcome {
        let reason = FinishReason::End { token: 2 };
        let stats = Stats {
            prompt_tokens: 30,
            reused_tokens: 10,
            prefill_seconds: 0.5,
            drawn_tokens: 11,
            decode_tokens: 10,
            decode_seconds: 0.25,
            passes: 11,
            rows: 30,
            ..Stats::default()
        };
        let choices = vec![Completion {
            tokens: vec![7, 8],
            text: "ab".to_owned(),
            reason,
            logprobs: Vec::new(),
            complete: None,
        }];
        Outcome { choices, stats, population: None }
    }

    fn print(json: bool) -> String {
        let mut out = Vec::new();
        let mut printer = Printer::new(&mut out, json, 30, true);
        printer.hear(Event::PrefillDone { tokens: 30, reused: 10, seconds: 0.5 });
        printer.hear(Event::Committed { choice: 0, tokens: &[7], text: "" });
        printer.hear(Event::Committed { choice: 0, tokens: &[8], text: "ab" });
        printer.finish(&outcome(), 5).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_is_the_text_and_ends_its_line() {
        assert_eq!(print(false), "ab\n");
    }

    #[test]
    fn json_is_one_object_a_line_with_a_summary() {
        insta::assert_snapshot!(print(true), @r#"
        {"event":"prefill_done","tokens":30,"reused":10,"seconds":0.5}
        {"event":"committed","choice":0,"tokens":[7],"text":""}
        {"event":"committed","choice":0,"tokens":[8],"text":"ab"}
        {"event":"done","choices":[{"tokens":[7,8],"text":"ab","reason":{"reason":"end","token":2}}],"stats":{"prompt_tokens":30,"reused_tokens":10,"prefill_seconds":0.5,"drawn_tokens":11,"decode_tokens":10,"decode_seconds":0.25,"passes":11,"rows":30,"drafted_tokens":0,"accepted_tokens":0,"draft_seconds":0.0,"reduce_seconds":0.0,"whole_rows":0,"kept_rows":0,"held_rows":0,"read_rows":0,"cache_bytes":0,"peak_cache_bytes":0,"prefill_rate":40.0,"decode_rate":40.0},"seed":5}
        "#);
    }

    #[test]
    fn statistics_fit_a_line() {
        let Outcome { stats, choices, .. } = outcome();
        insta::assert_snapshot!(stats_line(&stats, choices[0].reason, 5, 1024),
            @"[prompt 20 tokens (+10 reused), 40.0 tok/s · answer 10 tokens, 40.0 tok/s · 11 passes · end · seed 5]");
        let length = stats_line(&stats, FinishReason::Length, 5, 64);
        assert!(length.contains("answer 11 tokens") && length.contains("64 tokens (-n)"));
        let reduced = Stats {
            whole_rows: 400,
            kept_rows: 100,
            cache_bytes: 1_500_000,
            peak_cache_bytes: 4_000_000,
            held_rows: 1000,
            read_rows: 125,
            ..stats
        };
        let line = stats_line(&reduced, FinishReason::Cancelled, 5, 64);
        assert!(
            line.contains("forgot 75% of the cache (1.5 of 4.0 MB left), read 12% of its rows"),
            "{line}"
        );
        assert!(stats_line(&stats, FinishReason::Cancelled, 5, 64).contains("cancelled"));
    }

    #[test]
    fn a_closed_pipe_stops_the_run() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> io::Result<usize> {
                Err(io::ErrorKind::BrokenPipe.into())
            }
            fn flush(&mut self) -> io::Result<()> {
                Ok(())
            }
        }
        let mut printer = Printer::new(Closed, false, 1, true);
        let event = Event::Committed { choice: 0, tokens: &[8], text: "ab" };
        assert_eq!(printer.hear(event), Control::Stop);
        assert!(printer.finish(&outcome(), 0).is_err());
    }
}
