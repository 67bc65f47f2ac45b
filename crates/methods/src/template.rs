//! Static draft trees: which rank of which node's candidates is guessed, in what order.
//!
//! The shape is Token Recycling's (arXiv:2408.08696): a node is a path of candidate ranks. Drafters
//! fill it with tokens of their own.

use tessera_core::{DraftContext, DraftTree, TokenId};

/// Candidates that are kept of each token, and most children of a node.
pub const RANKS: usize = 8;

/// An estimate of how often the token that follows is the candidate of each rank. It orders the nodes
/// of a cut template; a wrong order costs speed, never exactness. `cargo test --release -p
/// tessera-runtime --test speculation -- --nocapture ranks` counts the shares on SmolLM2.
pub const RANK_PRIOR: [f64; RANKS] = [0.40, 0.12, 0.05, 0.03, 0.02, 0.02, 0.015, 0.015];

/// The children that the paper's template takes of each path (release 2.2.2 of its code).
const PAPER: &[(&[u8], u8)] = &[
    (&[], 8),
    (&[0], 8),
    (&[1], 4),
    (&[2], 3),
    (&[3], 2),
    (&[4], 1),
    (&[5], 1),
    (&[6], 1),
    (&[7], 1),
    (&[0, 0], 8),
    (&[0, 1], 3),
    (&[0, 2], 2),
    (&[0, 3], 1),
    (&[0, 4], 1),
    (&[0, 5], 1),
    (&[0, 6], 1),
    (&[0, 7], 1),
    (&[1, 0], 2),
    (&[1, 1], 1),
    (&[2, 0], 1),
    (&[3, 0], 1),
    (&[4, 0], 1),
    (&[5, 0], 1),
    (&[0, 0, 0], 5),
    (&[0, 0, 1], 2),
    (&[0, 0, 2], 1),
    (&[0, 0, 3], 1),
    (&[0, 0, 4], 1),
    (&[0, 1, 0], 1),
    (&[0, 2, 0], 1),
    (&[1, 0, 0], 1),
    (&[2, 0, 0], 1),
    (&[3, 0, 0], 1),
    (&[0, 0, 0, 0], 3),
    (&[0, 0, 0, 1], 1),
    (&[0, 0, 0, 2], 1),
    (&[0, 0, 1, 0], 1),
    (&[0, 1, 0, 0], 1),
    (&[1, 0, 0, 0], 1),
    (&[0, 0, 0, 0, 0], 2),
    (&[0, 0, 0, 1, 0], 1),
];

/// Nodes of the paper's template.
pub const PAPER_NODES: usize = 80;

/// A tree of ranks, most worthwhile node first, parents before children.
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// By node: the number of its parent (`None`: the root) and its rank among the siblings.
    nodes: Vec<(Option<usize>, usize)>,
}

impl Template {
    /// The first `budget` nodes of the paper's template, in the order of their worth: the product
    /// of [`RANK_PRIOR`] along the path, the shallower and then the smaller path first among equals.
    pub fn paper(budget: usize) -> Self {
        let mut paths: Vec<Vec<u8>> = PAPER
            .iter()
            .flat_map(|&(path, children)| {
                (0..children).map(move |rank| path.iter().copied().chain([rank]).collect())
            })
            .collect();
        let worth = |path: &[u8]| path.iter().map(|&r| RANK_PRIOR[r as usize]).product::<f64>();
        paths.sort_by(|a, b| {
            let shallow = a.len().cmp(&b.len()).then_with(|| a.cmp(b));
            worth(b).total_cmp(&worth(a)).then(shallow)
        });
        paths.truncate(budget);
        let place = |path: &[u8]| paths.iter().position(|p| p == path);
        let node = |path: &Vec<u8>| {
            let (rank, above) = path.split_last().unwrap_or((&0, &[]));
            (place(above), *rank as usize)
        };
        Self { nodes: paths.iter().map(node).collect() }
    }

    /// A single path of first candidates, `nodes` long.
    pub fn chain(nodes: usize) -> Self {
        Self { nodes: (0..nodes).map(|n| (n.checked_sub(1), 0)).collect() }
    }

    /// Number of nodes.
    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.nodes.is_empty()
    }

    /// Adds the nodes to `tree` with the tokens that `candidate` gives for a parent and a rank;
    /// where it has none, what would lie below is left out too.
    pub fn fill(
        &self,
        context: &DraftContext<'_>,
        tree: &mut DraftTree,
        candidate: impl Fn(&DraftTree, Option<u32>, usize) -> Option<TokenId>,
    ) {
        let mut made: Vec<Option<u32>> = Vec::with_capacity(self.nodes.len());
        for &(above, rank) in &self.nodes {
            if tree.len() == context.budget {
                break;
            }
            let parent = above.map(|n| made[n]);
            let node = match parent {
                Some(None) => None,
                Some(Some(n)) if tree.depth(n) as usize >= context.depth => None,
                _ => candidate(tree, parent.flatten(), rank)
                    .map(|token| tree.add(parent.flatten(), token)),
            };
            made.push(node);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn depths(template: &Template) -> Vec<usize> {
        let mut depths: Vec<usize> = Vec::new();
        for &(parent, _) in &template.nodes {
            depths.push(parent.map_or(1, |p| depths[p] + 1));
        }
        depths
    }

    #[test]
    fn the_papers_template_has_its_80_nodes_by_depth() {
        let template = Template::paper(PAPER_NODES);
        let depths = depths(&template);
        let count = |d| depths.iter().filter(|&&x| x == d).count();
        assert_eq!([1, 2, 3, 4, 5, 6, 7].map(count), [8, 21, 25, 15, 8, 3, 0]);
        assert_eq!((template.len(), Template::paper(1000).len()), (80, 80));
        // Children take ranks 0, 1, 2, ... in order.
        for parent in std::iter::once(None).chain((0..80).map(Some)) {
            let ranks: Vec<usize> =
                template.nodes.iter().filter(|n| n.0 == parent).map(|n| n.1).collect();
            assert_eq!(ranks, (0..ranks.len()).collect::<Vec<_>>());
        }
    }

    #[test]
    fn a_smaller_template_is_a_beginning_of_a_larger_one() {
        let whole = Template::paper(PAPER_NODES);
        for budget in 0..=PAPER_NODES {
            let cut = Template::paper(budget);
            assert_eq!(cut.nodes, whole.nodes[..budget]);
            assert!(cut.nodes.iter().enumerate().all(|(n, &(p, _))| p.is_none_or(|p| p < n)));
        }
        assert_eq!(Template::chain(3).nodes, [(None, 0), (Some(0), 0), (Some(1), 0)]);
    }
}
