//! The draft model beside a session's model.

use std::path::Path;
use std::sync::Arc;

use tessera_core::{Backbone, Vocabulary};
use tessera_kernels::Pool;
use tessera_model::arch::Blueprint;
use tessera_model::cpu::{Arithmetic, CpuBackbone};
use tessera_model::open_weights;

use crate::{Error, Result};

/// Tokens by which one vocabulary may be longer than the other: tables are padded to multiples of
/// up to this many rows, and padding means no token.
const PADDING: usize = 1024;

/// A smaller model that guesses for another one, on the same threads.
pub(crate) struct Companion {
    pub(crate) name: String,
    pub(crate) backbone: Box<dyn Backbone>,
}

impl Companion {
    /// Loads the model at `path` on the threads of the model called `target`.
    pub(crate) fn load(
        name: &str,
        path: &Path,
        pool: Arc<Pool>,
        target: (&str, &dyn Vocabulary),
        progress: &(dyn Fn(u64) + Sync),
    ) -> Result<Self> {
        let weights = open_weights(path)?;
        if weights.hyper_params().filling.is_some() {
            return Err(crate::session::only_causal("draft-model", name));
        }
        let (tokenizer, _) = crate::prompt::texts(name, &*weights)?;
        agree(target, (name, &tokenizer))?;
        let blueprint = Blueprint::new(weights.hyper_params());
        let backbone =
            CpuBackbone::load_on(pool, blueprint, &weights, Arithmetic::default(), progress)?;
        Ok(Self { name: name.to_owned(), backbone: Box::new(backbone) })
    }
}

/// Checks that two vocabularies number the same tokens the same way, up to padding at the end.
fn agree(target: (&str, &dyn Vocabulary), draft: (&str, &dyn Vocabulary)) -> Result<()> {
    let refuse = |why: String| {
        let what = format!(
            "draft-model = {}: its vocabulary is not that of {}: {why}. \
             Next: use a smaller model of the same family",
            draft.0, target.0
        );
        Err(Error::Option { what })
    };
    let (t, d) = (target.1, draft.1);
    if t.len().abs_diff(d.len()) > PADDING {
        return refuse(format!("{} tokens and {}", d.len(), t.len()));
    }
    let show = |v: &dyn Vocabulary, id| match v.is_control(id) {
        true => "a control token".to_owned(),
        false => format!("{:?}", String::from_utf8_lossy(v.bytes(id))),
    };
    let differs = |id: &u32| t.bytes(*id) != d.bytes(*id) || t.is_control(*id) != d.is_control(*id);
    match (0..t.len().min(d.len()) as u32).find(differs) {
        Some(id) => refuse(format!("token {id} is {} and {}", show(d, id), show(t, id))),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tessera_testkit::Words;

    #[test]
    fn vocabularies_agree_up_to_padding() {
        let words = |n: usize| Words::new((0..n).map(|i| i.to_string()));
        let said =
            |a: &Words, b: &Words| agree(("big", a), ("small", b)).map_err(|e| e.to_string());
        let same = words(50);
        said(&same, &same).unwrap();
        let error = said(&words(5000), &words(50)).unwrap_err();
        assert!(error.contains("52 tokens and 5002") && error.contains("Next:"), "{error}");
        // One word is spelt differently.
        let mut spelt: Vec<String> = (0..50).map(|i| i.to_string()).collect();
        spelt[17] = "x".to_owned();
        let error = said(&same, &Words::new(&spelt)).unwrap_err();
        assert!(error.contains("token 17 is \"x\" and \"17\""), "{error}");
        // A control token in the place of a word.
        let error = said(&same, &words(49)).unwrap_err();
        assert!(error.contains("token 49 is a control token"), "{error}");
    }
}
