//! Tessera as a Python module: models, the methods, checks and explanations.
//!
//! The module is thin: every object holds one of the library's, arguments are its fields by their own names, and what comes
//! back are plain dictionaries of what the command line prints as JSON. Python's lock is released while a model works.

mod checking;
mod model;
mod stream;

use pyo3::exceptions::{PyRuntimeError, PyValueError};
use pyo3::prelude::*;
use pythonize::pythonize;
use serde_json::{Value, json};
use tessera_runtime::METHODS;

/// A library error as Python's: `ValueError` for what cannot be asked, `RuntimeError` for what failed.
fn raised(error: tessera_runtime::Error) -> PyErr {
    match error.is_usage() {
        true => PyValueError::new_err(error.to_string()),
        false => PyRuntimeError::new_err(error.to_string()),
    }
}

/// Any error as `RuntimeError`.
fn failed(error: impl std::fmt::Display) -> PyErr {
    PyRuntimeError::new_err(error.to_string())
}

/// An argument that cannot be, as `ValueError`.
fn refused(error: impl std::fmt::Display) -> PyErr {
    PyValueError::new_err(error.to_string())
}

/// The registry: one dictionary a method.
#[pyfunction]
fn methods(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    let all: Vec<Value> = METHODS
        .iter()
        .map(|entry| {
            json!({
                "id": entry.slug,
                "aliases": entry.aliases,
                "name": entry.name,
                "summary": entry.summary,
                "kind": entry.kind,
                "exactness": entry.exactness.word(),
                "defaults": (entry.defaults)(),
                "schema": (entry.schema)(),
                "paper": entry.paper.as_ref().map(|paper| json!({
                    "title": paper.title,
                    "authors": paper.authors,
                    "year": paper.year,
                    "id": paper.id,
                })),
            })
        })
        .collect();
    Ok(pythonize(py, &all)?)
}

/// The sampling settings by name, with their defaults.
#[pyfunction]
fn sampling(py: Python<'_>) -> PyResult<Bound<'_, PyAny>> {
    Ok(pythonize(py, &tessera_runtime::Sampling::default())?)
}

/// The compiled half of the package `tessera`.
#[pymodule]
fn _tessera(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<model::Model>()?;
    module.add_class::<model::Completion>()?;
    module.add_class::<stream::Stream>()?;
    module.add_function(wrap_pyfunction!(sampling, module)?)?;
    module.add_function(wrap_pyfunction!(methods, module)?)
}
