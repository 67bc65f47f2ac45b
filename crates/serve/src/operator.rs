//! What only the operator may ask: another model.

use axum::Json;
use axum::body::Bytes;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::fault::Fault;
use crate::fields::{SwapModel, read};
use crate::pieces::Piece;
use crate::state::App;

/// Where the operator asks.
pub(crate) const PREFIX: &str = "/admin/";

/// POST /admin/model: changes the model for another of those that the server was started with. Requests
/// before it are finished, those that come meanwhile are answered with 503; if the other cannot be
/// loaded, the old one answers again.
pub(crate) async fn swap(State(app): State<App>, body: Bytes) -> Result<Json<Value>, Fault> {
    let asked: SwapModel = read(&body)?;
    let known = &app.config().models;
    if known.is_empty() {
        let what = "this server changes no models. Next: start it with --swap-model NAME";
        return Err(Fault::new(StatusCode::FORBIDDEN, "not_allowed", what));
    }
    if !known.contains(&asked.model) {
        let shown: String = asked.model.chars().take(64).collect();
        let message =
            format!("model {shown}: is not one that this server may load: {}", known.join(", "));
        let fault = Fault::new(StatusCode::NOT_FOUND, "model_not_found", message);
        return Err(Fault { param: Some("model".to_owned()), ..fault });
    }
    let was = app.session()?.info().name.clone();
    let mut pieces = app.swap(asked.model)?;
    while let Some(piece) = pieces.recv().await {
        match piece {
            Piece::Swapped => {
                let now = app.session()?.info().name.clone();
                return Ok(Json(json!({ "model": now, "was": was })));
            }
            Piece::Unloaded => {
                let what = format!(
                    "the model could not be loaded, and {was} answers again. Next: the server's log says why"
                );
                let status = StatusCode::INTERNAL_SERVER_ERROR;
                return Err(Fault::new(status, "model_not_loaded", what));
            }
            _ => {}
        }
    }
    Err(Fault::inside())
}
