//! A constraint without memory.

use tessera_core::{Constrain, Result, TokenId};

/// Allows the tokens of a list, at every place.
#[derive(Debug, Clone)]
pub struct Listed(pub Vec<TokenId>);

impl Constrain for Listed {
    fn check(&mut self, token: TokenId, _: &[u8]) -> Result<bool> {
        Ok(self.0.contains(&token))
    }

    fn complete(&mut self) -> Result<bool> {
        Ok(false)
    }

    fn accept(&mut self, _: TokenId, _: &[u8]) -> Result<()> {
        Ok(())
    }

    fn rollback(&mut self, _: usize) -> Result<()> {
        Ok(())
    }

    fn fork(&self) -> Box<dyn Constrain> {
        Box::new(self.clone())
    }
}
