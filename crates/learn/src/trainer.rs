//! The loop: batches, gradients, clipping, AdamW; held-out figures, checkpoints, a log.
//!
//! A run lives in a directory: `checkpoint`, `log.jsonl` (a line a step, a line a held-out figure),
//! `loss.svg`, and what [`Run::export`] writes. Killed at any moment, it goes on from its checkpoint
//! as if nothing had happened: the log is cut to the checkpoint's step first.

use std::fs::OpenOptions;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};
use tessera_kernels::Pool;
use tessera_kernels::training::{AdamW, adamw, peak, sum_of_squares};

use crate::checkpoint::Checkpoint;
use crate::corpus::documents;
use crate::data::Data;
use crate::export::{self, About, Stored};
use crate::files::{read, write_whole};
use crate::network::{Network, Shape};
use crate::objectives::{Objective, Place};
use crate::plot;
use crate::recipe::Recipe;
use crate::vocabulary::Vocabulary;
use crate::{Error, Result};

/// A line of the log. Times are not part of it: a run that is repeated writes the same lines.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// A step of training.
    Step {
        /// Steps made before it.
        step: u64,
        /// Nats a token.
        loss: f64,
        /// Norm of the gradient before clipping.
        norm: f64,
        /// Step size.
        rate: f32,
    },
    /// A held-out figure of the mean weights.
    HeldOut {
        /// Steps made before it.
        step: u64,
        /// Nats a token, or a bound on it.
        loss: f64,
    },
}

impl Line {
    fn step(&self) -> u64 {
        match self {
            Self::Step { step, .. } | Self::HeldOut { step, .. } => *step,
        }
    }
}

/// Losses with their steps.
type Curve = Vec<(u64, f64)>;

/// Where a run stands.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Progress {
    /// Steps made.
    pub step: u64,
    /// Steps in all.
    pub steps: u64,
    /// Loss of the last step, nats a token.
    pub loss: f64,
    /// Last held-out figure, nats a token.
    pub held_out: Option<f64>,
    /// Tokens a second of this run's steps, held-out figures and checkpoints left out.
    pub tokens_per_second: f64,
    /// Floating-point operations a second of the same.
    pub flops: f64,
    /// What fused multiply-adds reach on these threads.
    pub peak: f64,
    /// Seconds left at this speed.
    pub left: f64,
}

/// A training run.
pub struct Run {
    recipe: Recipe,
    shape: Shape,
    directory: PathBuf,
    vocabulary: Vocabulary,
    data: Data,
    network: Network,
    pool: Arc<Pool>,
    objective: Box<dyn Objective>,
    state: Checkpoint,
    gradient: Vec<f32>,
    log: Vec<Line>,
    peak: f64,
    /// Seconds, tokens and operations of the steps of this process.
    spent: (f64, f64, f64),
}

impl Run {
    /// Begins a run in `directory`, or goes on with the one that is there. `texts` is where the
    /// recipe's files lie.
    ///
    /// # Errors
    /// Texts that are missing or too short, a checkpoint of another recipe or other texts.
    pub fn open(recipe: Recipe, texts: &Path, directory: &Path, threads: usize) -> Result<Self> {
        recipe.validate()?;
        let mut text = String::new();
        for file in &recipe.data.files {
            text.push_str(&read(&texts.join(file))?);
            text.push_str("\n\n");
        }
        std::fs::create_dir_all(directory).map_err(Error::io(directory))?;
        let vocabulary = Vocabulary::train(documents(&text), recipe.data.vocabulary)?.filled(16);
        let shape = Shape { vocab: vocabulary.len(), ..recipe.model };
        if let Some(separator) = recipe.objective.separator()
            && let Some(index) = documents(&text).position(|d| !d.contains(separator))
        {
            let what = format!(
                "document {} has no `{separator}`, which ends what is given (objective.after)",
                index + 1
            );
            return Err(Error::Training { what });
        }
        let tokenizer = vocabulary.tokenizer()?;
        let (end, seed) = (vocabulary.end(), recipe.seed);
        let layout = (shape.context, recipe.data.rows);
        let data = Data::new(documents(&text), &tokenizer, end, layout, seed)?;
        let objective = recipe.objective.build(vocabulary.mask())?;
        let pool = Arc::new(Pool::new(threads));
        let network = Network::new(shape, Arc::clone(&pool), Some(vocabulary.mask()))?;
        let made_for = fingerprint(&recipe, &text);
        let path = directory.join("checkpoint");
        let state = match Checkpoint::load(&path)? {
            Some(state) if state.made_for == made_for && state.weights.len() == shape.weights() => {
                state
            }
            Some(_) => {
                let what = "was made with another recipe or other texts. Next: another --out, or \
                            remove it to start again";
                return Err(Error::file(&path, what));
            }
            None => {
                let weights = shape.fresh(seed);
                let zeros = vec![0.0; weights.len()];
                let (first, second, mean) = (zeros.clone(), zeros, weights.clone());
                Checkpoint { step: 0, seconds: 0.0, made_for, weights, first, second, mean }
            }
        };
        let log = cut_log(&directory.join("log.jsonl"), state.step)?;
        let peak = peak(&pool);
        Ok(Self {
            gradient: vec![0.0; shape.weights()],
            recipe,
            shape,
            directory: directory.to_owned(),
            vocabulary,
            data,
            network,
            pool,
            objective,
            state,
            log,
            peak,
            spent: (0.0, 0.0, 0.0),
        })
    }

    /// The recipe.
    pub fn recipe(&self) -> &Recipe {
        &self.recipe
    }

    /// Where the run lives.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Steps made so far.
    pub fn step(&self) -> u64 {
        self.state.step
    }

    /// Seconds of training, over all processes.
    pub fn seconds(&self) -> f64 {
        self.state.seconds
    }

    /// The log.
    pub fn log(&self) -> &[Line] {
        &self.log
    }

    /// The texts as tokens.
    pub fn data(&self) -> &Data {
        &self.data
    }

    /// The sizes, vocabulary included.
    pub fn shape(&self) -> &Shape {
        &self.shape
    }

    /// The name of the held-out figure.
    pub fn figure(&self) -> &'static str {
        self.objective.figure()
    }

    /// Starts from the weights of another run of the same sizes, before the first step.
    ///
    /// # Errors
    /// A run that has begun, or a checkpoint of other sizes.
    pub fn start_from(&mut self, checkpoint: &Path) -> Result<()> {
        if self.state.step > 0 {
            return Ok(());
        }
        match Checkpoint::load(checkpoint)? {
            Some(other) if other.mean.len() == self.state.weights.len() => {
                self.state.weights.clone_from(&other.mean);
                self.state.mean = other.mean;
                Ok(())
            }
            Some(_) => Err(Error::file(checkpoint, "holds a model of other sizes")),
            None => Err(Error::file(checkpoint, "is not there. Next: train that model first")),
        }
    }

    /// Makes steps until the recipe's are made or `hear` answers false. The state is on the disk
    /// afterwards.
    ///
    /// # Errors
    /// A loss that is no number, the disk.
    pub fn train(&mut self, hear: &mut dyn FnMut(&Progress) -> bool) -> Result<()> {
        let training = self.recipe.training;
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.directory.join("log.jsonl"))
            .map_err(Error::io(&self.directory))?;
        let mut on = true;
        while on && self.state.step < training.steps {
            let begun = Instant::now();
            let line = self.one_step()?;
            let seconds = begun.elapsed().as_secs_f64();
            self.spent.0 += seconds;
            self.state.seconds += seconds;
            self.put(&mut file, line)?;
            let step = self.state.step;
            let last = step == training.steps;
            if step.is_multiple_of(training.held_out_every) || last {
                let loss = self.held_out(training.held_out_rows, training.strata)?;
                self.put(&mut file, Line::HeldOut { step, loss })?;
            }
            on = hear(&self.progress());
            if step.is_multiple_of(training.checkpoint_every) || last || !on {
                file.sync_data().map_err(Error::io(&self.directory))?;
                self.state.save(&self.directory.join("checkpoint"))?;
            }
        }
        let title = format!("{}: loss", self.recipe.name);
        let (steps, held_out) = self.curves();
        let svg = plot::losses(&title, &steps, &held_out, 20);
        write_whole(&self.directory.join("loss.svg"), svg.as_bytes())
    }

    fn put(&mut self, file: &mut std::fs::File, line: Line) -> Result<()> {
        let text = serde_json::to_string(&line)
            .map_err(|e| Error::file(&self.directory, e.to_string()))?;
        writeln!(file, "{text}").map_err(Error::io(&self.directory))?;
        self.log.push(line);
        Ok(())
    }

    /// Losses of training and held-out figures, each with its step.
    fn curves(&self) -> (Curve, Curve) {
        let (mut steps, mut held_out) = (Vec::new(), Vec::new());
        for line in &self.log {
            match *line {
                Line::Step { step, loss, .. } => steps.push((step, loss)),
                Line::HeldOut { step, loss } => held_out.push((step, loss)),
            }
        }
        (steps, held_out)
    }

    /// Where the run stands.
    pub fn progress(&self) -> Progress {
        let (steps, held_out) = self.curves();
        let (seconds, tokens, operations) = self.spent;
        let seconds = seconds.max(1e-9);
        let total = self.recipe.training.steps;
        let per_step = (self.recipe.training.rows() * self.shape.context) as f64;
        Progress {
            step: self.state.step,
            steps: total,
            loss: steps.last().map_or(f64::NAN, |p| p.1),
            held_out: held_out.last().map(|p| p.1),
            tokens_per_second: tokens / seconds,
            flops: operations / seconds,
            peak: self.peak,
            left: (total - self.state.step) as f64 * per_step / (tokens / seconds).max(1e-9),
        }
    }

    fn one_step(&mut self) -> Result<Line> {
        let training = self.recipe.training;
        let (step, total) = (self.state.step, training.rows());
        self.gradient.fill(0.0);
        let mut loss = 0.0;
        for pass in 0..training.accumulate {
            let first = pass * training.batch;
            let rows: Vec<Vec<u32>> = (first..first + training.batch)
                .map(|i| self.data.row(step * total as u64 + i as u64).to_vec())
                .collect();
            let rows: Vec<&[u32]> = rows.iter().map(Vec::as_slice).collect();
            let place = Place { seed: self.recipe.seed, step, first, total };
            let batch = self.objective.training(&rows, place);
            let losses =
                self.network.losses(&self.state.weights, &batch, Some(&mut self.gradient))?;
            loss += losses
                .iter()
                .zip(&batch.targets)
                .map(|(l, t)| l * f64::from(t.weight))
                .sum::<f64>();
            self.spent.1 += batch.tokens.len() as f64;
            self.spent.2 += self.shape.operations(batch.tokens.len(), batch.targets.len());
        }
        let norm = sum_of_squares(&self.gradient).sqrt();
        if !loss.is_finite() || !norm.is_finite() {
            let what = format!(
                "step {step}: the loss is {loss} and the gradient's norm {norm}. Next: a smaller \
                 training.rate; the checkpoint before this step is whole"
            );
            return Err(Error::Training { what });
        }
        let scale = (f64::from(training.clip) / norm.max(1e-12)).min(1.0) as f32;
        let rate = training.rate_at(step);
        // A mean over the first few steps must not remember the fresh weights.
        let average = training.average.min(step as f32 / (step + 10) as f32);
        for tensor in self.shape.tensors() {
            let decay = if tensor.is_vector() { 0.0 } else { training.decay };
            let numbers = AdamW {
                rate,
                beta1: training.beta1,
                beta2: training.beta2,
                epsilon: 1e-8,
                decay,
                step: step + 1,
                scale,
                average,
            };
            let range = tensor.range();
            let state = &mut self.state;
            let moments = [
                &mut state.first[range.clone()],
                &mut state.second[range.clone()],
                &mut state.mean[range.clone()],
            ];
            let (weights, gradient) = (&mut state.weights[range.clone()], &self.gradient[range]);
            adamw(&self.pool, &numbers, weights, gradient, moments)
                .map_err(|e| Error::Training { what: e.to_string() })?;
        }
        self.state.step += 1;
        Ok(Line::Step { step, loss, norm, rate })
    }

    /// The held-out figure of the mean weights in nats a token, over the first `rows` rows.
    ///
    /// # Errors
    /// None beyond a mistake of this crate.
    pub fn held_out(&mut self, rows: usize, strata: usize) -> Result<f64> {
        let held_out = self.data.held_out();
        let rows = &held_out[..rows.min(held_out.len())];
        let mut sum = 0.0;
        for batch in self.objective.held_out(rows, strata) {
            let losses = self.network.losses(&self.state.mean, &batch, None)?;
            sum += losses
                .iter()
                .zip(&batch.targets)
                .map(|(l, t)| l * f64::from(t.weight))
                .sum::<f64>();
        }
        Ok(sum)
    }

    /// Writes the mean weights as `NAME.gguf` into the run's directory; returns the path.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn export(&self, stored: Stored) -> Result<PathBuf> {
        let path = self.directory.join(format!("{}.gguf", self.recipe.name));
        let about = About {
            name: &self.recipe.name,
            about: &self.recipe.about,
            is_bidirectional: self.objective.is_bidirectional(),
            is_shifted: self.objective.is_shifted(),
            is_any_subset: self.objective.is_any_subset(),
            prompt_end: self.recipe.objective.separator(),
        };
        export::write(&path, about, &self.shape, &self.vocabulary, &self.state.mean, stored)?;
        Ok(path)
    }
}

/// What a checkpoint is good for: the recipe and the texts, in short.
fn fingerprint(recipe: &Recipe, text: &str) -> String {
    let recipe = serde_json::to_string(recipe).unwrap_or_default();
    format!("{}-{}", digest(recipe.as_bytes()), digest(text.as_bytes()))
}

/// FNV-1a: tells changed texts apart, not forged ones.
pub(crate) fn digest(bytes: &[u8]) -> String {
    let hash = bytes.iter().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| {
        (h ^ u64::from(*b)).wrapping_mul(0x0000_0100_0000_01b3)
    });
    format!("{hash:016x}")
}

/// Reads the log and drops what lies behind `step`: steps that a crash took back.
fn cut_log(path: &Path, step: u64) -> Result<Vec<Line>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let (mut lines, mut kept) = (Vec::new(), String::new());
    for text in read(path)?.lines() {
        // A last line that was cut short belongs to no checkpoint.
        let Ok(line) = serde_json::from_str::<Line>(text) else { break };
        let done = match line {
            Line::Step { .. } => line.step() < step,
            Line::HeldOut { .. } => line.step() <= step,
        };
        if done {
            lines.push(line);
            // The text as it is: numbers that were read and written again may differ in the last digit.
            kept.push_str(text);
            kept.push('\n');
        }
    }
    write_whole(path, kept.as_bytes())?;
    Ok(lines)
}
