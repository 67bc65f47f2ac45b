//! The Hugging Face hub and its cache.

use std::path::PathBuf;

use super::catalogue::Entry;
use super::config::StoreConfig;
use super::error::{SourceError, StoreError};
use super::progress::Listener;
use super::reference::{HubRef, RepoId};
use super::shelf::Shelf;

pub(super) fn find(_: &StoreConfig, _: &HubRef) -> Result<Option<PathBuf>, StoreError> {
    Ok(None)
}

pub(super) fn find_file(
    _: &StoreConfig,
    _: &Shelf,
    _: &Entry,
    _: &RepoId,
    _: &str,
) -> Result<Option<PathBuf>, StoreError> {
    Ok(None)
}

pub(super) fn fetch_file(
    _: &StoreConfig,
    _: &Shelf,
    _: &Entry,
    _: &RepoId,
    _: &str,
    _: &mut Listener<'_>,
) -> Result<PathBuf, SourceError> {
    Err(SourceError::refused("the hub is not built in yet"))
}

pub(super) fn fetch(
    _: &StoreConfig,
    _: &HubRef,
    _: &mut Listener<'_>,
) -> Result<PathBuf, SourceError> {
    Err(SourceError::refused("the hub is not built in yet"))
}
