//! An explanation as a page that needs nothing else.

use std::fmt::Write;

use super::Explained;

const STYLE: &str = "body{font:16px/1.9 system-ui,sans-serif;max-width:50rem;margin:2rem auto;padding:0 1rem;\
color:#222;background:#fff}main{font-family:ui-monospace,monospace;white-space:pre-wrap}\
main span{border-radius:3px;padding:2px 0}.fixed{color:#999}.target{border:1px solid #b30000;padding:2px 4px}\
.warning{border-left:4px solid #b30000;padding-left:.6rem}footer{color:#555;font-size:13px}";

/// The page.
pub(super) fn html(e: &Explained) -> String {
    let mut page = String::new();
    let title = format!("Why {} says {:?}", e.model, e.target);
    let _ = write!(
        page,
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>{0}</title>\n\
         <style>{STYLE}</style>\n<h1>{0}</h1>\n",
        escaped(&title)
    );
    if let Some(warning) = &e.warning {
        let _ = writeln!(page, "<p class=\"warning\">{}</p>", escaped(warning));
    }
    page.push_str("<main>");
    let most = e.tokens.iter().filter_map(|t| t.importance).fold(0.0, f64::max).max(1e-9);
    for part in &e.tokens {
        let text = escaped(&part.text);
        let _ = match part.importance {
            Some(importance) => write!(
                page,
                "<span style=\"background:rgba(214,39,40,{:.3})\" title=\"{:.2} %\">{text}</span>",
                0.85 * importance / most,
                100.0 * importance
            ),
            None => write!(page, "<span class=\"fixed\">{text}</span>"),
        };
    }
    let _ = write!(
        page,
        " <span class=\"target\">{}</span></main>\n<footer>Probability {:.4}, rank {}. ReAGent: {} of {} \
         probes stopped, {} passes, {} rows, replacements by {:?}, seed {}. The darker, the more important; \
         hover for the share. Grey: never replaced.</footer>\n</html>\n",
        escaped(&e.target),
        e.probability,
        e.rank + 1,
        e.stopped,
        e.probes.len(),
        e.passes,
        e.rows,
        e.settings.replace,
        e.settings.seed
    );
    page
}

fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    #[test]
    fn text_is_escaped_and_nothing_is_loaded() {
        let page = super::html(&super::super::tests::explained());
        assert!(page.contains("a&amp;b") && page.contains("&lt;b&gt;") && page.contains("75.00 %"));
        assert!(
            !page.contains("http") && !page.contains("<b>") && page.contains("no probe passed")
        );
    }
}
