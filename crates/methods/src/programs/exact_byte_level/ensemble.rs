//! Several models, one text: their laws of the next byte, averaged.

use tessera_core::{Error, Result};

use super::covers::{ByteModel, SYMBOLS};

/// Models that read the same bytes, whatever their vocabularies.
pub struct Ensemble<'m> {
    members: Vec<Member<'m>>,
}

struct Member<'m> {
    model: ByteModel<'m>,
    weight: f64,
    /// False after a byte that the model holds for impossible: it has nothing to say any more.
    listens: bool,
}

impl<'m> Ensemble<'m> {
    /// These models, weighted as given (equally for no weights).
    ///
    /// # Errors
    /// No member; weights that are not one positive number for each member.
    pub fn new(models: Vec<ByteModel<'m>>, weights: &[f64]) -> Result<Self> {
        let good = weights.iter().all(|w| w.is_finite() && *w > 0.0);
        if models.is_empty() || !good || !(weights.is_empty() || weights.len() == models.len()) {
            let value = format!("{weights:?} for {} models", models.len());
            return Err(Error::setting("weights", value, "one positive number for each model"));
        }
        let weight = |i: usize| weights.get(i).copied().unwrap_or(1.0);
        let members = models.into_iter().enumerate();
        let members =
            members.map(|(i, model)| Member { model, weight: weight(i), listens: true }).collect();
        Ok(Self { members })
    }

    /// The models, in the order given.
    pub fn members(&self) -> impl Iterator<Item = &ByteModel<'m>> {
        self.members.iter().map(|m| &m.model)
    }

    /// Members that still have something to say.
    pub fn listening(&self) -> usize {
        self.members.iter().filter(|m| m.listens).count()
    }

    /// Takes `text` for the text of all members.
    ///
    /// # Errors
    /// As [`ByteModel::start`], unless some member can: then those that cannot spell the text are silent.
    pub fn start(&mut self, text: &[u8]) -> Result<()> {
        let mut failed = None;
        for member in &mut self.members {
            let outcome = member.model.start(text);
            member.listens = outcome.is_ok();
            match outcome {
                Err(error @ Error::Setting { .. }) => failed = Some(error),
                other => other?,
            }
        }
        match failed {
            Some(error) if self.listening() == 0 => Err(error),
            _ => Ok(()),
        }
    }

    /// The weighted mean of the members' probabilities of the next byte and of the end.
    pub fn distribution(&self) -> Vec<f64> {
        let speaking = || self.members.iter().filter(|m| m.listens);
        let total: f64 = speaking().map(|m| m.weight).sum();
        let mut mean = vec![0.0; SYMBOLS];
        for member in speaking() {
            for (slot, p) in mean.iter_mut().zip(member.model.distribution()) {
                *slot += member.weight / total * p;
            }
        }
        mean
    }

    /// The members' own distributions; `None` for a silent one.
    pub fn each(&self) -> Vec<Option<Vec<f64>>> {
        self.members.iter().map(|m| m.listens.then(|| m.model.distribution())).collect()
    }

    /// Tells every member the byte. False once no member has anything to say.
    ///
    /// # Errors
    /// As [`ByteModel::advance`].
    pub fn advance(&mut self, byte: u8) -> Result<bool> {
        for member in self.members.iter_mut().filter(|m| m.listens) {
            member.listens = member.model.advance(byte)?;
        }
        Ok(self.listening() > 0)
    }
}
