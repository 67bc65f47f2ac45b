//! The loops that own the order of passes, the sampler and the recipe.
