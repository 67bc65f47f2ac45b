//! Title: Fast Controlled Generation from Language Models with Adaptive Weighted Rejection Sampling
//! Authors: Lipkin et al.
//! Year: 2025
//! Id: arXiv:2504.05410
//! Implemented: tokens are asked for in the order of a Gumbel race until one is allowed, so an
//!   allowed token is drawn exactly with a few questions instead of one per token of the vocabulary.
//!   The race is the plain draw's own, so the token equals the masked run's, bit for bit, in every
//!   form. Forms of the weight: `unweighted` (A), `two_loops` (B, as published), `recursive` (C) and
//!   `geometric` (D, of the authors' library), with `max_accepts`, `max_rejects` and pruning of
//!   control tokens. `auto` is A where no weight is asked for, else the library's choice between C
//!   and D.
//!   Form C's product of (1 - q) telescopes: it is the mass that was not rejected. So its weight is
//!   that mass if the token after the accepted one is allowed too, and the accepted token's
//!   probability otherwise.
//! Left out: a critic, a proposal from another model; the cut at a remaining mass of 1e-5, which
//!   biases weights: tokens are asked for to the end.
//! Tag: AWRS

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use tessera_core::dist::scalar::{ln, neg_ln_1m};
use tessera_core::entry::{
    Claim, Exactness, Kind, Method, MethodConfig, MethodEntry, Needs, Paper, defaults_of, read_as,
    resolve_as, schema_of,
};
use tessera_core::{ConstrainedDraw, ConstrainedSampler, Drawn, Result, TokenId};

use super::DRAW;

/// The purposes of its numbers beyond the draw's own (`Key::purpose`): a race per loop, and the
/// geometric counts.
const LOOP: u64 = 0xa000;
const COUNT: u64 = 0xb000;

/// Tokens of a race that are looked at first; more as they are needed.
const FIRST: usize = 16;

/// Probability of the most probable token from which on form D asks less than form C.
const PEAKED: f64 = 2.0 / 3.0;

/// How the weight is estimated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// A where no weight is asked for; else D for a peaked distribution or more than two accepts,
    /// and C otherwise.
    #[default]
    Auto,
    /// A: one loop, no weight.
    Unweighted,
    /// B: a second loop estimates the weight (the paper).
    TwoLoops,
    /// C: one token more estimates the weight.
    Recursive,
    /// D: counts of a run with replacement, simulated.
    Geometric,
}

/// Settings of adaptive weighted rejection sampling.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields)]
pub struct Awrs {
    /// How the weight is estimated: `auto` (default), `unweighted` (A), `two_loops` (B, the paper's),
    /// `recursive` (C) or `geometric` (D).
    pub form: Form,
    /// Accepted tokens that form D counts. 2 to 64; the authors' library takes 2. More than 2 lower
    /// the variance and ask more.
    pub max_accepts: usize,
    /// Most tokens of a race that are asked for (forms A and C), or most rejections that are counted
    /// (form D; B knows no bound), at least 2; none (default) for as many as it takes. A bound gives
    /// weight 0, and without weights an error, to some texts that could go on.
    pub max_rejects: Option<usize>,
}

impl Default for Awrs {
    fn default() -> Self {
        Self { form: Form::Auto, max_accepts: 2, max_rejects: None }
    }
}

impl MethodConfig for Awrs {
    fn validate(&self) -> std::result::Result<(), String> {
        if !(2..=64).contains(&self.max_accepts) {
            return Err(format!("max_accepts = {}: must be 2 to 64", self.max_accepts));
        }
        match self.max_rejects {
            Some(n) if n < 2 => Err(format!("max_rejects = {n}: must be at least 2, or none")),
            Some(_) if self.form == Form::TwoLoops => {
                Err("max_rejects: form two_loops has no bound that keeps its weight right"
                    .to_owned())
            }
            _ => Ok(()),
        }
    }
}

/// The registry's line.
pub static ENTRY: MethodEntry = MethodEntry {
    slug: "awrs",
    aliases: &["adaptive-weighted-rejection-sampling", "adaptive-rejection"],
    name: "Adaptive weighted rejection sampling",
    paper: Some(Paper {
        title: "Fast Controlled Generation from Language Models with Adaptive Weighted Rejection \
                Sampling",
        authors: "Lipkin et al.",
        year: 2025,
        id: "arXiv:2504.05410",
    }),
    summary: "Draws under a constraint by asking only for tokens that the model proposes.",
    kind: Kind::Policy,
    places: DRAW,
    exactness: Exactness::BitExact,
    needs: Needs::NONE,
    claims: &[Claim {
        setting: "Llama-3.1-8B-Instruct; a checker per token against a mask by the same checker",
        metric: "faster than masking token by token, more than",
        value: 50.0,
        unit: "x",
        place: "reported in an overview of the paper",
    }],
    schema: schema_of::<Awrs>,
    defaults: defaults_of::<Awrs>,
    neutral: None,
    read: resolve_as::<Awrs>,
    build: |settings| {
        let config = read_as::<Awrs>("awrs", settings)?;
        Ok(Method::Sample(Box::new(Adaptive::new(config))))
    },
};

/// What a form sees of a draw.
trait Walk {
    /// The `n`-th token to come home in race number `race`, with its probability among all that take
    /// part; `None` behind the last one. Race 0 is the plain draw's.
    fn token(&mut self, race: usize, n: usize) -> Result<Option<(TokenId, f64)>>;

    /// Whether the constraint allows it.
    fn allows(&mut self, token: TokenId) -> Result<bool>;

    /// The `n`-th uniform number beyond the races'.
    fn uniform(&self, n: u32) -> f64;
}

/// A token and its weight, which is an estimate of the mass of the allowed ones.
type Weighted = Option<(TokenId, f64)>;

/// A: the first allowed token.
fn unweighted(walk: &mut dyn Walk, most: usize) -> Result<Option<TokenId>> {
    for n in 0..most {
        let Some((token, _)) = walk.token(0, n)? else { break };
        if walk.allows(token)? {
            return Ok(Some(token));
        }
    }
    Ok(None)
}

/// B: the first allowed token; then a race of those that are left, until one is allowed again.
fn two_loops(walk: &mut dyn Walk) -> Result<Weighted> {
    let (mut rejected, mut mass) = (Vec::new(), 0.0);
    let drawn = loop {
        let Some((token, p)) = walk.token(0, rejected.len())? else { return Ok(None) };
        if walk.allows(token)? {
            // What is left holds this token, whatever rounding says.
            mass = f64::min(mass, 1.0 - p);
            break token;
        }
        rejected.push(token);
        mass += p;
    };
    let mut more = 0;
    for n in 0.. {
        let Some((token, _)) = walk.token(1, n)? else { break };
        if rejected.contains(&token) {
            continue;
        }
        if walk.allows(token)? {
            break;
        }
        more += 1;
    }
    Ok(Some((drawn, (1.0 - mass) / (rejected.len() + more + 1) as f64)))
}

/// C: the first allowed token, and whether the next one is allowed too.
fn recursive(walk: &mut dyn Walk, most: usize) -> Result<Weighted> {
    let mut left = 1.0;
    for n in 0..most {
        let Some((token, p)) = walk.token(0, n)? else { break };
        if !walk.allows(token)? {
            left -= p;
            continue;
        }
        // What is left holds this token, whatever rounding says.
        left = f64::max(left, p);
        let next = if n + 1 == most { None } else { walk.token(0, n + 1)? };
        return Ok(Some(match next {
            Some((next, _)) if !walk.allows(next)? => (token, p),
            _ => (token, left),
        }));
    }
    Ok(None)
}

/// D: the counts of a run with replacement. Rejected tokens that such a run would meet again are
/// made up by geometric numbers.
fn geometric(walk: &mut dyn Walk, accepts: usize, most: usize) -> Result<Weighted> {
    let most = most as f64;
    let (mut drawn, mut numbered) = (None, 0);
    let (mut accepted, mut rejects, mut mass) = (0.0, 0.0, 0.0);
    let mut rejected = Vec::new();
    for race in 0..accepts {
        for n in 0.. {
            let Some((token, p)) = walk.token(race, n)? else { break };
            if rejected.contains(&token) {
                continue;
            }
            if mass > 0.0 {
                rejects += failures(f64::max(1.0 - mass, p), walk.uniform(numbered));
                numbered += 1;
            }
            if rejects >= most {
                break;
            }
            if walk.allows(token)? {
                accepted += 1.0;
                drawn = drawn.or(Some(token));
                break;
            }
            rejects += 1.0;
            mass += p;
            rejected.push(token);
        }
        if rejects >= most || drawn.is_none() {
            break;
        }
    }
    let counted = accepted + f64::min(rejects, most);
    let weight = f64::min(accepts as f64 - 1.0, accepted) / (counted - 1.0);
    Ok(drawn.map(|token| (token, weight)))
}

/// How many failures come before a success of probability `p`: a geometric number made of a uniform
/// one.
fn failures(p: f64, uniform: f64) -> f64 {
    if p >= 1.0 { 0.0 } else { (ln(uniform) / -neg_ln_1m(p)).floor() }
}

/// A real draw, as the forms see it. Tokens that the guard knows to be impossible take no part.
struct Asking<'p, 'a> {
    place: &'p mut ConstrainedDraw<'a>,
    races: Vec<Race>,
    /// Mass of the tokens that take part, in the whole distribution.
    share: f64,
    /// The largest probability among them.
    peak: f64,
}

/// The tokens of a race in the order of their arrival, fetched as they are needed.
#[derive(Default)]
struct Race {
    home: Vec<(TokenId, f64)>,
    asked: usize,
}

impl<'p, 'a> Asking<'p, 'a> {
    fn new(place: &'p mut ConstrainedDraw<'a>) -> Self {
        Self { place, races: Vec::new(), share: 1.0, peak: 1.0 }
    }
}

impl Walk for Asking<'_, '_> {
    fn token(&mut self, race: usize, n: usize) -> Result<Option<(TokenId, f64)>> {
        let place = &mut *self.place;
        let number = race as u64;
        let key = if race == 0 { place.key } else { place.key.purpose(LOOP + number) };
        if self.races.len() <= race {
            self.races.resize_with(race + 1, Race::default);
        }
        let race = &mut self.races[race];
        // Fewer than were asked for are all there are.
        while n >= race.home.len() && race.home.len() == race.asked {
            race.asked = if race.asked == 0 { FIRST } else { race.asked * 16 };
            let from = (place.logits, place.history, key);
            let guard = &*place.guard;
            let possible = |token| guard.possible(token);
            let (asked, home, weighted) = (race.asked, &mut race.home, place.weighted);
            (self.share, self.peak) =
                place.sampler.arrivals(from, possible, asked, weighted, home)?;
        }
        Ok(race.home.get(n).copied())
    }

    fn allows(&mut self, token: TokenId) -> Result<bool> {
        self.place.guard.check(token, self.place.vocabulary)
    }

    fn uniform(&self, n: u32) -> f64 {
        self.place.key.purpose(COUNT).uniform(n)
    }
}

/// The sampler.
#[derive(Debug)]
pub struct Adaptive {
    config: Awrs,
}

impl Adaptive {
    /// With these settings.
    pub fn new(config: Awrs) -> Self {
        Self { config }
    }
}

impl ConstrainedSampler for Adaptive {
    fn draw(&mut self, place: &mut ConstrainedDraw<'_>) -> Result<Drawn> {
        let Awrs { form, max_accepts: accepts, max_rejects } = self.config;
        let most = max_rejects.unwrap_or(usize::MAX);
        // At temperature 0 the distribution is one token, and there is nothing to weigh.
        let sharp = place.sampler.settings().temperature == 0.0;
        let weighted = place.weighted && form != Form::Unweighted && !sharp;
        let mut asking = Asking::new(place);
        if !weighted {
            let token = unweighted(&mut asking, most)?;
            return Ok(token.map_or(Drawn::NOTHING, |t| Drawn { token: Some(t), log_weight: 0.0 }));
        }
        // The choice looks at the distribution only, or the weights would be biased.
        asking.token(0, 0)?;
        let drawn = match form {
            Form::TwoLoops => two_loops(&mut asking)?,
            Form::Geometric => geometric(&mut asking, accepts, most)?,
            Form::Auto if accepts > 2 || asking.peak >= PEAKED => {
                geometric(&mut asking, accepts, most)?
            }
            _ => recursive(&mut asking, most)?,
        };
        Ok(match drawn {
            Some((token, weight)) => {
                Drawn { token: Some(token), log_weight: ln(weight) + ln(asking.share) }
            }
            None => Drawn::NOTHING,
        })
    }

    fn weighs(&self) -> bool {
        self.config.form != Form::Unweighted
    }
}

#[cfg(test)]
#[path = "../awrs_tests.rs"]
mod estimates;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_out_of_range_are_refused_by_name() {
        let good = Awrs::default();
        for (bad, name) in [
            (Awrs { max_accepts: 1, ..good.clone() }, "max_accepts"),
            (Awrs { max_rejects: Some(1), ..good.clone() }, "max_rejects"),
            (Awrs { max_rejects: Some(9), form: Form::TwoLoops, ..good.clone() }, "max_rejects"),
        ] {
            let error = bad.validate().unwrap_err();
            assert!(error.starts_with(name), "{error}");
        }
    }
}
