//! A constraint over a canvas, as the loop holds it.

use tessera_core::{Canvas, CanvasRule, Commit, Error, Position, Result};

/// Drops fills that leave no allowed text beside those before them: each alone is allowed, several
/// need not be.
///
/// # Errors
/// [`Error::Constraint`] if none is left.
pub(super) fn hold(
    rule: &mut dyn CanvasRule,
    canvas: &Canvas,
    commit: &mut Commit,
    step: u32,
) -> Result<()> {
    let (mut canvas, wanted) = (canvas.clone(), commit.fills.len());
    let mut kept = Vec::with_capacity(wanted);
    for fill in &commit.fills {
        let mut with = canvas.clone();
        with.fill(fill.position, fill.token, step)?;
        if rule.fits(&with) {
            canvas = with;
            kept.push(*fill);
        }
    }
    if kept.is_empty() {
        let what = "every token that the method would write leads out of what is allowed";
        return Err(Error::Constraint { what: what.to_owned() });
    }
    if kept.len() < wanted {
        let stays = |p: Position| kept.iter().any(|f| f.position == p);
        let dropped = |p: Position| commit.fills.iter().any(|f| f.position == p) && !stays(p);
        commit.remask.retain(|&p| !dropped(p));
        // It was looked up for another canvas.
        commit.next = None;
        commit.fills = kept;
    }
    Ok(())
}
