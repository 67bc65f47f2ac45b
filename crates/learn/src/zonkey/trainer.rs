//! Steps of training: split, compress, noise, unfold; compress what came out, and unfold it twice more.
//!
//! A run is one file with weights, moments and notes. Killed at any moment, it goes on from its last
//! checkpoint as if nothing had happened: what a step draws depends on the seed and its number only.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use candle_core::Tensor;
use serde::Serialize;
use tessera_model::toy::Stream;

use super::losses::{collapse, compression, existence, lengths, mixed, reconstruction};
use super::parameters::Parameters;
use super::splitter::{Segments, segments, starts};
use super::{DEVICE, Model, Settings, noised};
use crate::{Error, Result};

/// Characters kept apart; the rarest beyond are written as the last one.
const CHARACTERS: usize = 128;
/// Share of the text that is held out, at its end: one in this many characters.
const HELD_OUT: usize = 20;
/// Weights of the losses: existence, collapse, compression, segments without and with too many starts.
const EXISTENCE: f64 = 0.05;
const COLLAPSE: f64 = 5.0;
const COMPRESSION: f64 = 3.0;
const LENGTHS: f64 = 10.0;
/// Mean noise of the clean pass, and how far apart the two dirty ones are.
const NOISE: f32 = 0.02;

/// How long and on what a run trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct Order {
    /// Steps in all. At least 1.
    pub steps: u64,
    /// Documents of a step. At least 1.
    pub documents: usize,
    /// Characters of a document: at least twice the longest segment.
    pub length: usize,
    /// The seed of weights, documents, starts and noise.
    pub seed: u64,
}

/// Losses of a step.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Losses {
    /// Steps made, this one included.
    pub step: u64,
    /// All of them, weighed.
    pub total: f32,
    /// Nats a character of the clean pass.
    pub reconstruction: f32,
    /// `1 - cos` of the dirty pass.
    pub mixed: f32,
    /// Mean probability of a start.
    pub starts: f32,
    /// Norm of the gradient before clipping.
    pub norm: f64,
}

/// A run.
#[derive(Debug)]
pub struct Run {
    model: Model,
    order: Order,
    step: u64,
    file: PathBuf,
    notes: BTreeMap<String, String>,
    training: Vec<u32>,
    held_out: Vec<u32>,
}

/// The characters of a text, most frequent first, at most as many as are kept apart.
fn characters(text: &str) -> Vec<char> {
    let mut counts: BTreeMap<char, usize> = BTreeMap::new();
    text.chars().for_each(|c| *counts.entry(c).or_default() += 1);
    let mut all: Vec<(char, usize)> = counts.into_iter().collect();
    all.sort_by_key(|&(c, n)| (std::cmp::Reverse(n), c));
    all.truncate(CHARACTERS);
    all.into_iter().map(|(c, _)| c).collect()
}

/// Reads a model's settings and characters from the notes of its file.
fn described(file: &Path, notes: &BTreeMap<String, String>) -> Result<(Settings, Vec<char>)> {
    let wrong = |what: &str| {
        Error::file(file, format!("is no model of zonkey: {what}. Next: `tessera zonkey train`"))
    };
    let note = |name: &str| notes.get(name).ok_or_else(|| wrong(&format!("no {name}")));
    let settings: Settings =
        serde_json::from_str(note("settings")?).map_err(|e| wrong(&e.to_string()))?;
    tessera_core::entry::MethodConfig::validate(&settings).map_err(|e| wrong(&e))?;
    let characters: Vec<char> = note("characters")?.chars().collect();
    match characters.len() {
        1..=CHARACTERS => Ok((settings, characters)),
        n => Err(wrong(&format!("{n} characters"))),
    }
}

/// Opens a finished or unfinished model.
///
/// # Errors
/// A file that is not there or is none.
pub fn open(file: &Path) -> Result<Model> {
    let (parameters, notes) = Parameters::load(file)?;
    let (settings, characters) = described(file, &notes)?;
    Model::new(settings, characters, parameters)
}

impl Run {
    /// Begins a run on `text`, or goes on with the one in `file`.
    ///
    /// # Errors
    /// Too little text; a file of another run.
    pub fn open(text: &str, settings: Settings, order: Order, file: &Path) -> Result<Self> {
        let least = 2 * settings.longest;
        if order.steps == 0 || order.documents == 0 || order.length < least {
            let what = format!(
                "zonkey: steps and documents must be at least 1, and characters of a document at least \
                 {least} (twice the longest segment)"
            );
            return Err(Error::setting(what));
        }
        let known = characters(text);
        let notes = BTreeMap::from([
            ("settings".to_owned(), serde_json::to_string(&settings).unwrap_or_default()),
            ("characters".to_owned(), known.iter().collect()),
            ("order".to_owned(), serde_json::to_string(&order).unwrap_or_default()),
            ("text".to_owned(), crate::trainer::digest(text.as_bytes())),
        ]);
        let (parameters, step) = match file.exists() {
            false => (Parameters::new(order.seed), 0),
            true => {
                let (parameters, mut found) = Parameters::load(file)?;
                let step = found.remove("step").and_then(|s| s.parse().ok()).unwrap_or(0);
                if found != notes {
                    let what = "was made with other settings or another text. Next: another --out, or \
                                remove it to start again";
                    return Err(Error::file(file, what));
                }
                (parameters, step)
            }
        };
        let model = Model::new(settings, known, parameters)?;
        let mut training = model.encode(text);
        let held_out = training.split_off(training.len() - training.len() / HELD_OUT);
        if training.len() < 2 * order.length || held_out.len() < order.length {
            let what = format!(
                "the text has {} characters: at least {} are needed. Next: more text",
                training.len() + held_out.len(),
                order.length * HELD_OUT
            );
            return Err(Error::Training { what });
        }
        let file = file.to_owned();
        Ok(Self { model, order, step, file, notes, training, held_out })
    }

    /// The model as it is.
    pub fn model(&self) -> &Model {
        &self.model
    }

    /// Where the run lives.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Steps made.
    pub fn step(&self) -> u64 {
        self.step
    }

    /// Characters to train on, and those held out.
    pub fn text(&self) -> (&[u32], &[u32]) {
        (&self.training, &self.held_out)
    }

    /// Writes the checkpoint.
    ///
    /// # Errors
    /// What the disk reports.
    pub fn save(&self) -> Result<()> {
        let mut notes = self.notes.clone();
        notes.insert("step".to_owned(), self.step.to_string());
        self.model.parameters.save(&self.file, &notes)
    }

    /// Warm-up over a twentieth of the steps, then a cosine to a tenth.
    fn rate(&self) -> f64 {
        let (step, steps) = (self.step as f64, self.order.steps as f64);
        let warm = (steps / 20.0).max(1.0);
        let at = ((step - warm) / (steps - warm).max(1.0)).clamp(0.0, 1.0);
        let cosine = 0.1 + 0.45 * (1.0 + (std::f64::consts::PI * at).cos());
        self.model.settings.rate * cosine * ((step + 1.0) / warm).min(1.0)
    }

    /// One step.
    ///
    /// # Errors
    /// A loss that is no number.
    pub fn advance(&mut self) -> Result<Losses> {
        let Order { documents, length, seed, .. } = self.order;
        let mut stream = Stream::new(seed ^ (self.step + 1).wrapping_mul(0x9e6c_63d0_876a_ed1b));
        let room = (self.training.len() - length) as u32;
        let mut ids = Vec::with_capacity(documents * length);
        for _ in 0..documents {
            let first = stream.below(room + 1) as usize;
            ids.extend_from_slice(&self.training[first..first + length]);
        }
        let (loss, mut losses) = self.loss(&ids, &mut stream)?;
        if !losses.total.is_finite() {
            let what = format!(
                "step {}: the loss is {}. Next: a smaller rate; the last checkpoint is whole",
                self.step, losses.total
            );
            return Err(Error::Training { what });
        }
        let gradients = loss.backward()?;
        let rate = self.rate();
        losses.norm = self.model.parameters.step(&gradients, rate, self.step + 1)?;
        self.step += 1;
        losses.step = self.step;
        Ok(losses)
    }

    /// The loss of documents one after another.
    fn loss(&self, ids: &[u32], stream: &mut Stream) -> Result<(Tensor, Losses)> {
        let model = &self.model;
        let (longest, d) = (model.settings.longest, model.settings.width);
        let (length, documents) = (self.order.length, ids.len() / self.order.length);
        let table = model.table()?;
        let of = |ids: &[u32]| table.index_select(&Tensor::new(ids, &DEVICE)?, 0);
        let b = model.splitter.probabilities(&of(ids)?.reshape((documents, length, d))?)?;
        let all = cut(&b, longest, Some(&mut *stream))?;
        let parts = segments(&b, all, longest)?;
        let characters: Vec<u32> = parts.places.iter().map(|&p| ids[p as usize]).collect();
        let s = parts.starts.len();
        let y = of(&characters)?.reshape((s, longest, d))?;
        let z = model.compressor.compress(&y, &parts.existence)?;
        let labels = parts.existence.detach().exp()?;
        let wide = d * model.settings.vectors;
        let mut noise = || {
            let values: Vec<f32> = (0..s * wide).map(|_| stream.normal()).collect();
            Tensor::from_vec(values, (s, wide), &DEVICE)
        };
        let [first, second] = [noise()?, noise()?];
        let mut times = |time: &mut dyn FnMut(&mut Stream) -> f32| {
            let values: Vec<f32> = (0..s).map(|_| time(stream)).collect();
            Tensor::new(&values[..], &DEVICE)
        };
        // Beta(1, 3) has the mean 1/4.
        let little =
            times(&mut |s| (4.0 * NOISE * (1.0 - (1.0 - s.unit()).cbrt())).clamp(0.0, 1.0))?;
        let much = times(&mut Stream::unit)?;
        let less = (&much * (1.0 - (times(&mut Stream::unit)? * f64::from(NOISE))?)?)?;

        let clean = model.denoiser.unfold(&noised(&z, &first, &little)?, &little)?;
        let rebuilt = reconstruction(&clean, &table, &characters, &parts)?;
        let there = existence(&clean.existence, &labels)?;
        let again =
            model.compressor.compress(&clean.vectors.detach(), &clean.existence.detach())?;
        let reference = model.denoiser.unfold(&noised(&again.detach(), &second, &much)?, &much)?;
        let output = model.denoiser.unfold(&noised(&again, &second, &less)?, &less)?;
        let (toward, there_too) = mixed(&output, &reference, &y, &labels, &parts)?;
        let (none, short) = lengths(&b, longest)?;

        let mut total = ((&rebuilt + &toward)? + ((there + there_too)? * EXISTENCE)?)?;
        total = (total + (collapse(&z, &parts)? * COLLAPSE)?)?;
        total = (total + (compression(&b, longest)? * COMPRESSION)?)?;
        total = (total + ((none + short)? * LENGTHS)?)?;
        let number = |x: &Tensor| x.to_scalar::<f32>();
        let losses = Losses {
            step: 0,
            total: number(&total)?,
            reconstruction: number(&rebuilt)?,
            mixed: number(&toward)?,
            starts: number(&b.mean_all()?)?,
            norm: 0.0,
        };
        Ok((total, losses))
    }
}

/// Hard starts of every document of `[B, T]`, drawn if there is a stream.
fn cut(
    b: &Tensor,
    longest: usize,
    mut stream: Option<&mut Stream>,
) -> candle_core::Result<Vec<(usize, usize)>> {
    let mut all = Vec::new();
    for (document, b) in b.detach().to_vec2::<f32>()?.iter().enumerate() {
        all.extend(starts(b, longest, stream.as_deref_mut()).into_iter().map(|s| (document, s)));
    }
    Ok(all)
}

impl Model {
    /// A text cut into segments without drawing: where each begins, with its characters' existence.
    ///
    /// # Errors
    /// A text shorter than a segment.
    pub fn split(&self, ids: &[u32]) -> Result<Segments> {
        let (longest, d) = (self.settings.longest, self.settings.width);
        if ids.len() < longest {
            let what = format!("zonkey: a text must have at least {longest} characters");
            return Err(Error::setting(what));
        }
        let x = self.table()?.index_select(&Tensor::new(ids, &DEVICE)?, 0)?;
        let b = self.splitter.probabilities(&x.reshape((1, ids.len(), d))?)?;
        let all = cut(&b, longest, None)?;
        Ok(segments(&b, all, longest)?)
    }

    /// The vectors of a text's segments: `[S, C * d]`.
    ///
    /// # Errors
    /// Segments of another text.
    pub fn compressed(&self, ids: &[u32], parts: &Segments) -> Result<Tensor> {
        let (longest, d) = (self.settings.longest, self.settings.width);
        let characters: Vec<u32> = parts
            .places
            .iter()
            .map(|&p| ids.get(p as usize).copied().unwrap_or_default())
            .collect();
        let y = self.table()?.index_select(&Tensor::new(&characters[..], &DEVICE)?, 0)?;
        let y = y.reshape((parts.starts.len(), longest, d))?;
        Ok(self.compressor.compress(&y, &parts.existence)?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tiny() -> (String, Settings, Order) {
        let text = crate::corpus::speech::Utterance::new;
        let text: Vec<String> =
            (0..60).map(|i| text(1, i, crate::corpus::speech::Ear::USUAL).said).collect();
        let settings =
            Settings { width: 16, longest: 6, layers: 1, heads: 2, ..Settings::default() };
        (text.join("\n"), settings, Order { steps: 6, documents: 2, length: 24, seed: 3 })
    }

    #[test]
    fn a_run_that_was_stopped_goes_on_as_if_it_had_not_been() {
        let (text, settings, order) = tiny();
        let scratch = tempfile::tempdir().unwrap();
        let (a, b) = (scratch.path().join("a"), scratch.path().join("b"));
        let mut whole = Run::open(&text, settings, order, &a).unwrap();
        let all: Vec<f32> = (0..6).map(|_| whole.advance().unwrap().total).collect();
        let mut first = Run::open(&text, settings, order, &b).unwrap();
        let mut parts: Vec<f32> = (0..3).map(|_| first.advance().unwrap().total).collect();
        first.save().unwrap();
        // Steps behind the checkpoint are lost, and made again.
        first.advance().unwrap();
        let mut second = Run::open(&text, settings, order, &b).unwrap();
        assert_eq!(second.step(), 3);
        parts.extend((0..3).map(|_| second.advance().unwrap().total));
        assert_eq!(all, parts);
        assert!(all.iter().all(|loss| loss.is_finite()) && all[5] < all[0], "{all:?}");
        second.save().unwrap();
        // What was saved is the model, and another text or order is refused.
        let ids = second.model().encode("the red bear sees a small boat.");
        assert_eq!(open(&b).unwrap().rebuilt(&ids).unwrap(), second.model().rebuilt(&ids).unwrap());
        let other = Order { seed: 4, ..order };
        let error = Run::open(&text, settings, other, &b).unwrap_err().to_string();
        assert!(error.contains("other settings or another text"), "{error}");
    }

    #[test]
    fn too_little_text_and_orders_that_cannot_be_are_refused() {
        let (text, settings, order) = tiny();
        let file = Path::new("never-written");
        let refused = |text: &str, order| Run::open(text, settings, order, file).unwrap_err();
        assert!(refused(&text[..100], order).to_string().contains("Next: more text"));
        for order in [
            Order { steps: 0, ..order },
            Order { documents: 0, ..order },
            Order { length: 11, ..order },
        ] {
            assert!(refused(&text, order).is_usage());
        }
    }
}
