//! `tessera list`: the models known by name, and those on this machine.

use tessera_model::store::Holding;

use super::{result, size, store};
use crate::Globals;

pub(crate) fn run(globals: &Globals) -> anyhow::Result<()> {
    let holdings = store(globals)?.list();
    result(globals, &holdings, &table(&holdings))
}

/// The holdings as aligned columns; the last one is not padded.
fn table(holdings: &[Holding]) -> String {
    let head = ["NAME", "INSTALLED", "SIZE", "SOURCE", "DESCRIPTION"].map(str::to_owned);
    let rows = holdings.iter().map(|h| {
        let installed = match (h.installed, h.partial_bytes) {
            (true, _) => "yes".to_owned(),
            (false, 0) => "no".to_owned(),
            (false, kept) => format!("{} %", kept * 100 / h.bytes.max(1)),
        };
        [h.name.clone(), installed, size(h.bytes), h.source.clone(), h.description.clone()]
    });
    let rows: Vec<[String; 5]> = std::iter::once(head).chain(rows).collect();
    let widths: [usize; 5] = std::array::from_fn(|column| {
        rows.iter().filter_map(|r| r.get(column)).map(|c| c.chars().count()).max().unwrap_or(0)
    });
    let mut text = String::new();
    for row in &rows {
        let cells: Vec<String> =
            row.iter().zip(widths).map(|(cell, width)| format!("{cell:width$}")).collect();
        text.push_str(cells.join("  ").trim_end());
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use tessera_model::store::{Catalogue, Store, StoreConfig};

    use super::*;

    #[test]
    fn the_catalogue_as_a_table() {
        let config = StoreConfig::under("/nowhere");
        let mut holdings = Store::new(config, Catalogue::builtin().unwrap()).list();
        holdings[1].partial_bytes = holdings[1].bytes / 3;
        holdings[3].installed = true;
        holdings[3].source = "store".to_owned();
        insta::assert_snapshot!(table(&holdings));
    }
}
