//! A loaded model.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};
use pythonize::{depythonize, pythonize};
use serde_json::Value;
use tessera_core::entry::find;
use tessera_core::entry::read_as;
use tessera_runtime::reagent::{ReAGent, explain};
use tessera_runtime::{
    Control, Event, Holes, METHODS, Message, MethodCall, Options, Outcome, Prompt, Recipe, Request,
    Sampling, Session,
};

use crate::checking;
use crate::stream::Stream;
use crate::{failed, raised, refused};

/// Events between two looks for Ctrl-C.
const LOOK: u32 = 8;

/// A loaded model.
///
/// Args:
///     name: a catalogue name, `org/repo[:QUANT]`, or a path. Fetched if it is not here.
///     draft_model: a smaller model with the same vocabulary, for methods that need one.
///     threads: 0 takes all cores.
///     context: most tokens of a sequence; None for what the model was trained for.
///     offline: use no network.
#[pyclass(module = "tessera", frozen, subclass)]
pub struct Model {
    session: Arc<Session>,
}

/// One answer.
#[pyclass(module = "tessera", frozen, get_all)]
pub struct Completion {
    /// Its text.
    text: String,
    /// Its tokens.
    tokens: Vec<u32>,
    /// Why it ended: `stop`, `end`, `constraint met`, `length`, `cancelled` or `context full`.
    finish_reason: String,
    /// Whether its constraint is met; None without one.
    complete: Option<bool>,
    /// All answers, this one first, if more than one was asked for.
    choices: Vec<Py<Completion>>,
    /// What the request cost, as `tessera run --json` prints it.
    stats: Py<PyAny>,
}

#[pymethods]
impl Completion {
    fn __str__(&self) -> &str {
        &self.text
    }

    fn __repr__(&self) -> String {
        format!("Completion(text={:?}, finish_reason={:?})", self.text, self.finish_reason)
    }
}

/// What a request is made of, as Python gives it.
#[derive(FromPyObject)]
pub(crate) struct Asked<'py> {
    #[pyo3(item)]
    prompt: Bound<'py, PyAny>,
    #[pyo3(item)]
    max_tokens: Option<usize>,
    #[pyo3(item)]
    methods: Vec<Bound<'py, PyAny>>,
    #[pyo3(item)]
    sampling: Bound<'py, PyDict>,
    #[pyo3(item)]
    seed: u64,
    #[pyo3(item)]
    stop: Vec<String>,
    #[pyo3(item)]
    n: usize,
    #[pyo3(item)]
    raw: bool,
    #[pyo3(item)]
    template: Option<String>,
    #[pyo3(item)]
    rough: Option<String>,
}

/// Methods as `slug:key=value` or as dictionaries with an `id`.
pub(crate) fn calls(methods: &[Bound<'_, PyAny>]) -> PyResult<Vec<MethodCall>> {
    let call = |given: &Bound<'_, PyAny>| -> PyResult<MethodCall> {
        if let Ok(text) = given.cast::<PyString>() {
            return MethodCall::parse(METHODS, &text.to_cow()?).map_err(refused);
        }
        let mut settings: serde_json::Map<String, Value> = depythonize(given)?;
        match settings.shift_remove("id") {
            Some(Value::String(id)) => {
                Ok(MethodCall { id, settings: settings.into_iter().collect() })
            }
            _ => Err(refused("methods: a dictionary needs an `id`, the method's name")),
        }
    };
    methods.iter().map(call).collect()
}

impl Model {
    fn request(&self, asked: &Asked<'_>) -> PyResult<Request> {
        let session = &*self.session;
        let tokens = match asked.prompt.cast::<PyString>() {
            Ok(text) => {
                let text = text.to_cow()?;
                let message = [Message::new("user", &*text)];
                let prompt = match asked.raw || !session.info().chat {
                    true => Prompt::Raw(&text),
                    false => Prompt::Chat(&message),
                };
                session.tokens(&prompt)
            }
            Err(_) => {
                let messages: Vec<Message> = depythonize(&asked.prompt)?;
                session.tokens(&Prompt::Chat(&messages))
            }
        };
        let mut request = Request::new(tokens.map_err(raised)?);
        request.context = Some(session.info().context);
        request.max_tokens = asked.max_tokens;
        request.seed = asked.seed;
        request.stops.clone_from(&asked.stop);
        request.choices = asked.n;
        request.recipe = Recipe::resolve(METHODS, &calls(&asked.methods)?).map_err(refused)?;
        // As on the command line: under a constraint nothing is truncated unless asked for.
        let base = match request.recipe.is_constrained() {
            true => Sampling::neutral(),
            false => Sampling::default(),
        };
        let mut sampling = serde_json::to_value(base).map_err(failed)?;
        let given: serde_json::Map<String, Value> = depythonize(&asked.sampling)?;
        if let Some(all) = sampling.as_object_mut() {
            all.extend(given);
        }
        request.sampling = serde_json::from_value(sampling).map_err(refused)?;
        if let Some(text) = &asked.template {
            let holes = Holes::read(text, session.vocabulary()).map_err(raised)?;
            request.max_tokens = Some(asked.max_tokens.unwrap_or(0).max(holes.length));
            request.canvas.template = holes.given;
        }
        if let Some(text) = &asked.rough {
            request.canvas.prior = session.vocabulary().encode(text);
        }
        Ok(request)
    }
}

fn completion(py: Python<'_>, outcome: &Outcome) -> PyResult<Completion> {
    let stats = pythonize(py, &outcome.stats)?.unbind();
    let one = |choice: &tessera_runtime::Completion| Completion {
        text: choice.text.clone(),
        tokens: choice.tokens.clone(),
        finish_reason: choice.reason.word().to_owned(),
        complete: choice.complete,
        choices: Vec::new(),
        stats: stats.clone_ref(py),
    };
    let all = outcome.choices.iter().map(|c| Py::new(py, one(c))).collect::<PyResult<_>>()?;
    match outcome.choices.first() {
        Some(first) => Ok(Completion { choices: all, ..one(first) }),
        None => Err(failed("the loop made no answer")),
    }
}

#[pymethods]
impl Model {
    #[new]
    #[pyo3(signature = (name="smollm2", *, draft_model=None, threads=0, context=None, offline=false))]
    fn new(
        py: Python<'_>,
        name: &str,
        draft_model: Option<String>,
        threads: usize,
        context: Option<usize>,
        offline: bool,
    ) -> PyResult<Self> {
        let options = Options { threads, context, offline, draft_model, ..Options::default() };
        let session = py.detach(|| Session::open(name, &options)).map_err(raised)?;
        Ok(Self { session: Arc::new(session) })
    }

    /// Facts about the model, as a dictionary.
    fn info<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        Ok(pythonize(py, self.session.info())?)
    }

    /// The tokens of a text.
    fn tokenize(&self, text: &str) -> Vec<u32> {
        self.session.vocabulary().encode(text)
    }

    /// The text of tokens; bytes that are no UTF-8 become U+FFFD.
    fn detokenize(&self, tokens: Vec<u32>) -> PyResult<String> {
        let vocabulary = self.session.vocabulary();
        if let Some(bad) = tokens.iter().find(|&&t| t as usize >= vocabulary.len()) {
            return Err(refused(format!("token {bad}: there are {}", vocabulary.len())));
        }
        let bytes: Vec<u8> = tokens.iter().flat_map(|&t| vocabulary.bytes(t).to_vec()).collect();
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Answers one request, which the Python half has put together.
    fn _generate(&self, py: Python<'_>, asked: Asked<'_>) -> PyResult<Completion> {
        let request = self.request(&asked)?;
        let session = &*self.session;
        let outcome = py.detach(|| -> PyResult<Outcome> {
            let (stopped, mut seen) = (AtomicBool::new(false), 0u32);
            let mut interrupted = None;
            let mut listener = |_: Event<'_>| {
                seen += 1;
                if seen.is_multiple_of(LOOK)
                    && let Err(error) = Python::attach(|py| py.check_signals())
                {
                    interrupted = Some(error);
                    stopped.store(true, Ordering::Relaxed);
                    return Control::Stop;
                }
                Control::Continue
            };
            let outcome = session.generate(&request, &mut listener, &stopped).map_err(raised)?;
            interrupted.map_or(Ok(outcome), Err)
        })?;
        completion(py, &outcome)
    }

    /// Begins to answer one request; the text comes piece by piece.
    fn _stream(&self, asked: Asked<'_>) -> PyResult<Stream> {
        if asked.n != 1 {
            return Err(refused(format!("n = {}: a stream has one answer", asked.n)));
        }
        Ok(Stream::begin(Arc::clone(&self.session), self.request(&asked)?))
    }

    /// The natural logarithm of the probability of each token of `answer` behind `prompt`, both
    /// taken as they are.
    fn score(&self, py: Python<'_>, prompt: &str, answer: &str) -> PyResult<Vec<f64>> {
        let session = &*self.session;
        session.expect_causal("score").map_err(raised)?;
        let mut request = session.request(&Prompt::Raw(prompt)).map_err(raised)?;
        request.forced = session.vocabulary().encode(answer);
        if request.forced.is_empty() {
            return Ok(Vec::new());
        }
        let never = AtomicBool::new(false);
        let run = || session.generate(&request, &mut |_| Control::Continue, &never);
        let outcome = py.detach(run).map_err(raised)?;
        Ok(outcome.choices.into_iter().next().map(|c| c.logprobs).unwrap_or_default())
    }

    /// Which tokens of `prompt` made the model choose the next one (ReAGent); `target` explains that
    /// text's first token instead, settings are those of `tessera methods show reagent`.
    #[pyo3(signature = (prompt, *, target=None, **settings))]
    fn explain<'py>(
        &self,
        py: Python<'py>,
        prompt: &str,
        target: Option<&str>,
        settings: Option<Bound<'py, PyDict>>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let session = &*self.session;
        session.expect_causal("explain").map_err(raised)?;
        let given: serde_json::Map<String, Value> = match settings {
            Some(settings) => depythonize(&settings)?,
            None => serde_json::Map::new(),
        };
        let entry = find(METHODS, "reagent").map_err(refused)?;
        let resolved = entry.resolve(&given.into_iter().collect()).map_err(refused)?;
        let settings: ReAGent = read_as("reagent", &resolved).map_err(refused)?;
        let tokens = session.tokens(&Prompt::Raw(prompt)).map_err(raised)?;
        let target = match target {
            None => None,
            Some(text) => match session.vocabulary().encode(text).first() {
                Some(&token) => Some(token),
                None => return Err(refused("target: is empty")),
            },
        };
        let plain = |&p: &usize| !session.tokenizer().is_structural(tokens[p]);
        let positions: Vec<usize> = (0..tokens.len()).filter(plain).collect();
        let found = py.detach(|| {
            let (backbone, vocabulary) = (session.backbone(), session.vocabulary());
            explain(backbone, vocabulary, &settings, &tokens, &positions, target, &mut |_, _| ())
        });
        let found = found.map_err(failed)?;
        let parts: Vec<Value> = positions
            .iter()
            .zip(&found.scores)
            .map(|(&p, score)| {
                let text = session.tokenizer().spelling(tokens[p]).into_owned();
                serde_json::json!({ "text": text, "token": tokens[p], "importance": score })
            })
            .collect();
        let explained = serde_json::json!({
            "target": session.tokenizer().spelling(found.target).into_owned(),
            "probability": found.probability,
            "rank": found.rank,
            "tokens": parts,
            "passes": found.passes,
        });
        Ok(pythonize(py, &explained)?)
    }

    /// Claimed, measured, control of a method on this model, as the record that `tessera check` writes.
    ///
    /// Args:
    ///     method: `slug` or `slug:key=value`.
    ///     tokens: most tokens of an answer.
    ///     count: prompts of each category.
    ///     repeat: turns.
    ///     temperature: 0 takes the most probable token.
    #[pyo3(signature = (method, *, tokens=64, count=2, repeat=1, temperature=0.0, seed=0))]
    #[allow(clippy::too_many_arguments)]
    fn check<'py>(
        &self,
        py: Python<'py>,
        method: &str,
        tokens: usize,
        count: usize,
        repeat: usize,
        temperature: f32,
        seed: u64,
    ) -> PyResult<Bound<'py, PyAny>> {
        let plan = checking::plan((tokens, count, repeat), temperature, seed)?;
        let session = &*self.session;
        let record = py.detach(|| checking::check(session, method, &plan, count))?;
        Ok(pythonize(py, &record)?)
    }

    fn __repr__(&self) -> String {
        let info = self.session.info();
        format!("Model({:?}, arch={:?}, threads={})", info.name, info.arch, info.threads)
    }
}
