//! The home page: every path with a link, or a button where it changes something.

use std::fmt::Write;

use super::endpoints::ENDPOINTS;

/// The page.
pub(super) fn page() -> String {
    let mut page = String::from(HEAD);
    for endpoint in ENDPOINTS {
        let path = escaped(endpoint.path);
        let name = if endpoint.path == "/" { "/" } else { path.trim_start_matches('/') };
        let control = match endpoint.mutates {
            true => format!("<form action='{path}' method='post'><button>{name}</button></form>"),
            false => format!("<a href='{path}'>{name}</a>"),
        };
        let _ = writeln!(page, "<tr><td>{control}</td><td>{}", escaped(endpoint.help));
        for (name, help) in endpoint.parameters {
            let _ = writeln!(page, "<div><code>{}</code> {}</div>", escaped(name), escaped(help));
        }
        page.push_str("</td></tr>\n");
    }
    page.push_str("</table></body></html>\n");
    page
}

/// Text that HTML shows as it is.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

const HEAD: &str = "<!DOCTYPE html>
<html lang='en'><head><title>Torus admin</title>
<style>
body { font-family: sans-serif; }
td { padding: 3px 12px 3px 3px; vertical-align: top; }
tr:nth-child(odd) { background: #eee; }
form { margin: 0; }
button { border: none; background: none; color: #069; text-decoration: underline; padding: 0; font: inherit; cursor: pointer; }
</style></head><body><h1>torus-proxy</h1><table>
";

#[cfg(test)]
mod tests {
    #[test]
    fn the_page_has_every_path() {
        let page = super::page();
        for endpoint in super::ENDPOINTS {
            assert!(page.contains(&format!("'{}'", endpoint.path)), "{}", endpoint.path);
        }
        assert!(page.contains("&lt;name&gt;"));
    }
}
