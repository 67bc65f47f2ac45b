//! What a constraint costs on real models: questions a token and wall-clock time, by sampler.
//!
//!     cargo run --release -p tessera-runtime --example constrain -- [MODEL ...]
//!
//! Three ways to draw the same text under the same JSON schema: `awrs`; full masking by the parser's
//! own mask; full masking by single checks, which is what a constraint without a mask has to do. The
//! last one is slow, so it makes a few tokens only, and the others are shown over the same tokens too.

#![allow(clippy::print_stdout, reason = "its output is its purpose")]

use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::time::Instant;

use serde_json::{Value, json};
use tessera_core::{Constrain, Constraint, ConstraintStats, Error, TokenId, Vocabulary};
use tessera_methods::guidance::{Guidance, Source};
use tessera_runtime::{
    Control, METHODS, Message, MethodCall, Options, Outcome, Prompt, Recipe, Sampling, Session,
};

type Anything<T> = Result<T, Box<dyn std::error::Error>>;

/// Tokens of an answer, and tokens where single checks take part.
const TOKENS: usize = 80;
const FEW: usize = 12;

fn workload() -> Vec<(&'static str, Value)> {
    let text = |most: usize| json!({ "type": "string", "minLength": 1, "maxLength": most });
    let object = |properties: Value| {
        let names: Vec<String> =
            properties.as_object().into_iter().flat_map(|p| p.keys().cloned()).collect();
        json!({
            "type": "object",
            "properties": properties,
            "required": names,
            "additionalProperties": false,
        })
    };
    vec![
        (
            "Describe the city of Paris as JSON with the fields name, country and population.",
            object(json!({
                "name": text(40),
                "country": text(40),
                "population": { "type": "integer", "minimum": 0 },
            })),
        ),
        (
            "Is the sentence \"I loved this film\" positive or negative? Answer in JSON.",
            object(json!({
                "sentiment": { "enum": ["positive", "negative", "neutral"] },
                "confidence": { "type": "number", "minimum": 0, "maximum": 1 },
            })),
        ),
        (
            "List three colours as a JSON array of strings.",
            json!({ "type": "array", "items": text(20), "minItems": 3, "maxItems": 3 }),
        ),
        (
            "Write a JSON object for a book: title, author, year, and whether it is in print.",
            object(json!({
                "title": text(60),
                "author": text(40),
                "year": { "type": "integer", "minimum": 1000, "maximum": 2100 },
                "in_print": { "type": "boolean" },
            })),
        ),
        (
            "Give the arguments of a call of get_weather for Berlin in degrees Celsius, as JSON.",
            object(json!({
                "location": text(40),
                "unit": { "enum": ["celsius", "fahrenheit"] },
            })),
        ),
    ]
}

/// The same constraint without its mask.
#[derive(Debug)]
struct Single(Guidance);

#[derive(Debug)]
struct SingleState(Box<dyn Constrain>);

impl Constraint for Single {
    fn begin(&self, vocabulary: &dyn Vocabulary) -> Result<Box<dyn Constrain>, Error> {
        Ok(Box::new(SingleState(self.0.begin(vocabulary)?)))
    }
}

impl Constrain for SingleState {
    fn check(&mut self, token: TokenId, bytes: &[u8]) -> Result<bool, Error> {
        self.0.check(token, bytes)
    }

    fn complete(&mut self) -> Result<bool, Error> {
        self.0.complete()
    }

    fn finished(&self) -> bool {
        self.0.finished()
    }

    fn accept(&mut self, token: TokenId, bytes: &[u8]) -> Result<(), Error> {
        self.0.accept(token, bytes)
    }

    fn rollback(&mut self, tokens: usize) -> Result<(), Error> {
        self.0.rollback(tokens)
    }

    fn fork(&self) -> Box<dyn Constrain> {
        Box::new(Self(self.0.fork()))
    }
}

/// Sums over prompts.
#[derive(Default)]
struct Sum {
    tokens: usize,
    seconds: f64,
    asked: ConstraintStats,
    complete: usize,
    texts: Vec<Vec<TokenId>>,
}

impl Sum {
    fn add(&mut self, outcome: &Outcome) {
        self.tokens += outcome.stats.drawn_tokens;
        self.seconds += outcome.stats.decode_seconds;
        if let Some(stats) = outcome.stats.constraint {
            self.asked.add(&stats);
        }
        self.complete += usize::from(outcome.choices[0].complete == Some(true));
        self.texts.push(outcome.choices[0].tokens.clone());
    }
}

fn main() -> Anything<()> {
    let named: Vec<String> = std::env::args().skip(1).collect();
    let models = match named.is_empty() {
        true => vec!["smollm2".to_owned(), "qwen2.5-coder:0.5b".to_owned()],
        false => named,
    };
    for model in models {
        let session = Session::open(&model, &Options::default())?;
        println!("{model}: {} tokens in the vocabulary", session.vocabulary().len());
        neutral(&session)?;
        for temperature in [0.0, 0.8] {
            table(&session, temperature)?;
        }
        particles(&session)?;
    }
    Ok(())
}

fn recipe(calls: &[&str], rule: Arc<dyn Constraint>) -> Anything<Recipe> {
    let calls = calls.iter().map(|c| MethodCall::parse(METHODS, c));
    let calls = calls.collect::<Result<Vec<_>, _>>()?;
    Ok(Recipe::resolve(METHODS, &calls)?.with_constraint(rule)?)
}

fn guidance(source: Source) -> Guidance {
    Guidance { name: "json-schema", next: "mend the workload", source, seconds: 30.0 }
}

fn answer(
    session: &Session,
    prompt: &str,
    recipe: Recipe,
    sampling: Sampling,
    tokens: usize,
) -> Anything<Outcome> {
    let mut request = session.request(&Prompt::Chat(&[Message::new("user", prompt)]))?;
    request.recipe = recipe;
    request.sampling = sampling;
    request.seed = 1;
    request.max_tokens = Some(tokens);
    Ok(session.generate(&request, &mut |_| Control::Continue, &AtomicBool::new(false))?)
}

/// A pattern that allows everything changes nothing.
fn neutral(session: &Session) -> Anything<()> {
    let (mut same, mut all) = (0, 0);
    for (prompt, _) in workload() {
        for sampling in [Sampling::greedy(), Sampling::default(), Sampling::neutral()] {
            let any = guidance(Source::Regex("(?s:.*)".to_owned()));
            let under = answer(session, prompt, recipe(&["awrs"], Arc::new(any))?, sampling, 48)?;
            let plain = answer(session, prompt, Recipe::plain(), sampling, 48)?;
            same += usize::from(under.choices[0].tokens == plain.choices[0].tokens);
            all += 1;
        }
    }
    println!("  regex (?s:.*) gives the plain run's tokens: {same} of {all}");
    Ok(())
}

fn table(session: &Session, temperature: f32) -> Anything<()> {
    let sampling = Sampling { temperature, ..Sampling::neutral() };
    let vocabulary = session.vocabulary().len() as f64;
    println!(
        "  temperature {temperature}, no truncation   tokens  complete  questions/token  % of \
         vocabulary  constraint us/token  us/token in all"
    );
    let mut first: Option<Vec<Vec<TokenId>>> = None;
    let arms = [
        ("awrs", "awrs", false, TOKENS),
        ("mask by the parser", "mask", false, TOKENS),
        ("awrs, few tokens", "awrs", false, FEW),
        ("mask by the parser, few", "mask", false, FEW),
        ("mask by single checks", "mask", true, FEW),
    ];
    for (label, sampler, single, tokens) in arms {
        let mut sum = Sum::default();
        for (prompt, schema) in workload() {
            let rule = guidance(Source::JsonSchema(schema));
            let rule: Arc<dyn Constraint> =
                if single { Arc::new(Single(rule)) } else { Arc::new(rule) };
            sum.add(&answer(session, prompt, recipe(&[sampler], rule)?, sampling, tokens)?);
        }
        let n = sum.tokens as f64;
        let questions = sum.asked.evaluations as f64 / n;
        println!(
            "    {label:<28}{:>10}{:>7} of 5{questions:>17.2}{:>17.3}{:>21.1}{:>17.0}",
            sum.tokens,
            sum.complete,
            100.0 * questions / vocabulary,
            1e6 * sum.asked.seconds / n,
            1e6 * sum.seconds / n,
        );
        let beginnings = sum.texts.iter().map(|t| t[..t.len().min(FEW)].to_vec()).collect();
        match &first {
            None => first = Some(beginnings),
            Some(known) if *known != beginnings => println!("    (other tokens: a fault)"),
            Some(_) => {}
        }
    }
    Ok(())
}

/// Particles on the first task.
fn particles(session: &Session) -> Anything<()> {
    let sampling = Sampling { temperature: 0.8, ..Sampling::neutral() };
    let tasks = workload();
    let (prompt, schema) = &tasks[0];
    for count in [1, 5, 10] {
        let smc = format!("smc:particles={count}");
        let rule = Arc::new(guidance(Source::JsonSchema(schema.clone())));
        let start = Instant::now();
        let made = answer(session, prompt, recipe(&[&smc, "awrs"], rule)?, sampling, TOKENS)?;
        let Some(population) = made.population else { continue };
        let asked = made.stats.constraint.map_or(0, |c| c.evaluations);
        println!(
            "  {count} particles: ln P(schema) about {:.1}, {:.1} effective, {} resamplings, {} tokens, \
             {:.2} questions/token, {:.2} s: {}",
            population.log_probability,
            population.effective,
            population.resamplings,
            made.stats.drawn_tokens,
            asked as f64 / made.stats.drawn_tokens as f64,
            start.elapsed().as_secs_f64(),
            made.choices[0].text.replace('\n', " "),
        );
    }
    Ok(())
}
