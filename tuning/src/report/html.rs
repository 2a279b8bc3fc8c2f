//! Findings as one HTML page without scripts, fonts or anything else from elsewhere.

use std::fmt::Write as _;

use crate::facts::{Choices, Facts};
use crate::plan::{Finding, Tally, Verdict};

/// The findings as one page.
pub fn render(findings: &[Finding], facts: &Facts, choices: &Choices) -> String {
    let tally = Tally::of(findings);
    let mut page = format!(
        "<!doctype html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"><meta name=\"viewport\" content=\"width=device-width\">\
         <title>torus-tune: {profile}</title><style>{STYLE}</style></head><body>\n\
         <header><h1>Tuning report <small>{profile}</small></h1><p>kernel {kernel} &middot; {cores} cores, workers on {workers} &middot; \
         {memory} MiB{container}</p></header>\n<main>\n",
        profile = choices.profile,
        kernel = escape(&facts.kernel),
        cores = facts.cpus.len(),
        workers = escape(&facts.data_cpus.to_list()),
        memory = facts.memory_bytes / (1024 * 1024),
        container = if facts.container { " &middot; in a container" } else { "" },
    );
    page.push_str("<ul class=\"tally\">");
    for (count, class, what) in [
        (tally.change, "change", "to change"),
        (tally.denied, "denied", "not changeable here"),
        (tally.advice, "advice", "to look at"),
        (tally.unreadable, "unreadable", "not readable"),
        (tally.good, "good", "good"),
        (tally.not_applicable, "not-applicable", "not applicable"),
    ] {
        let _ = write!(page, "<li class=\"{class}\"><b>{count}</b> {what}</li>");
    }
    page.push_str("</ul>\n");
    if !facts.nics.is_empty() {
        page.push_str("<p class=\"map\">");
        for nic in &facts.nics {
            let _ = write!(
                page,
                "<span><b>{}</b> {}: {} receive, {} transmit queues, {} interrupts</span>",
                escape(&nic.name),
                escape(nic.driver.as_deref().unwrap_or("virtual")),
                nic.rx.len(),
                nic.tx.len(),
                nic.irqs.len()
            );
        }
        page.push_str("</p>\n");
    }
    let mut group = None;
    for finding in findings.iter().filter(|finding| !matches!(finding.verdict, Verdict::NotApplicable(_))) {
        let card = &finding.setting.card;
        if group != Some(card.group) {
            if group.is_some() {
                page.push_str("</tbody></table>\n");
            }
            group = Some(card.group);
            let _ = write!(
                page,
                "<h2>{}</h2><table><thead><tr><th>Verdict</th><th>Setting</th><th>Now</th><th>Wanted</th><th>Matters</th>\
                 <th>Why</th></tr></thead><tbody>",
                card.group.title()
            );
        }
        row(&mut page, finding);
    }
    if group.is_some() {
        page.push_str("</tbody></table>\n");
    }
    let absent: Vec<&Finding> =
        findings.iter().filter(|finding| matches!(finding.verdict, Verdict::NotApplicable(_))).collect();
    if !absent.is_empty() {
        page.push_str("<h2>Not applicable here</h2><table class=\"absent\"><tbody>");
        for finding in absent {
            let _ = write!(
                page,
                "<tr><td><code>{}</code>{}</td><td>{}</td></tr>",
                escape(&finding.setting.name),
                label(finding),
                escape(&finding.verdict.reason().unwrap_or_default())
            );
        }
        page.push_str("</tbody></table>\n");
    }
    page.push_str("</main></body></html>\n");
    page
}

fn row(page: &mut String, finding: &Finding) {
    let card = &finding.setting.card;
    let cell = |text: Option<&str>| escape(text.filter(|text| !text.is_empty()).unwrap_or("\u{2013}"));
    let reason = finding.verdict.reason().map_or_else(String::new, |reason| format!("<em>{}</em> ", escape(&reason)));
    let _ = write!(
        page,
        "<tr class=\"{class}\"><td><span class=\"mark\">{verdict}</span></td><td>{title}<br><code>{name}</code>{label}</td>\
         <td class=\"value\">{now}</td><td class=\"value\">{wanted}<small>{unit}</small></td><td>{weight}</td><td>{reason}{why}</td></tr>",
        class = finding.verdict.name(),
        verdict = finding.verdict.name(),
        title = escape(&card.title),
        name = escape(&finding.setting.name),
        label = label(finding),
        now = cell(finding.now.as_deref()),
        wanted = cell(finding.wanted.as_deref()),
        unit = escape(&card.unit),
        weight = card.weight.name(),
        why = escape(&card.why),
    );
}

fn label(finding: &Finding) -> String {
    if finding.label.is_empty() { String::new() } else { format!(" <i>{}</i>", escape(&finding.label)) }
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

const STYLE: &str = "\
:root{color-scheme:light dark;--ink:#1c2330;--dim:#5d6675;--line:#dfe3ea;--page:#fff;--band:#f5f7fa;--change:#b3261e;--denied:#8a5a00;\
--advice:#0b5cad;--good:#1b7f3b}\
@media(prefers-color-scheme:dark){:root{--ink:#e6e9ef;--dim:#9aa4b4;--line:#333b48;--page:#14181f;--band:#1b212a;--change:#ff8a80;\
--denied:#ffca6a;--advice:#8ec2ff;--good:#7fdc9b}}\
body{margin:0;font:15px/1.45 system-ui,sans-serif;color:var(--ink);background:var(--page)}\
header,main{max-width:76rem;margin:0 auto;padding:1rem 1.5rem}header{border-bottom:1px solid var(--line)}\
h1{font-size:1.5rem;margin:.2rem 0}h1 small{color:var(--dim);font-weight:400}h2{font-size:1.05rem;margin:1.8rem 0 .4rem}\
header p,.map{color:var(--dim);margin:.2rem 0}.map span{margin-right:1.5rem}\
.tally{display:flex;flex-wrap:wrap;gap:.6rem;list-style:none;padding:0;margin:.4rem 0 1rem}\
.tally li{border:1px solid var(--line);border-left:4px solid var(--dim);border-radius:4px;padding:.4rem .8rem}\
.tally b{font-size:1.25rem;margin-right:.3rem}\
table{border-collapse:collapse;width:100%;font-size:.9rem}th{text-align:left;color:var(--dim);font-weight:500}\
th,td{padding:.4rem .6rem;border-bottom:1px solid var(--line);vertical-align:top;overflow-wrap:anywhere}\
th:nth-child(1){width:6.5rem}th:nth-child(2){width:17rem}th:nth-child(3),th:nth-child(4){width:10rem}th:nth-child(5){width:4.5rem}\
table:not(.absent){table-layout:fixed}.absent td:first-child{width:23rem}\
code{font-size:.85em;color:var(--dim)}.value{font-family:ui-monospace,monospace}.value small{display:block;color:var(--dim)}\
tr.good .mark,li.good b{color:var(--good)}tr.change .mark,tr.unreadable .mark,li.change b,li.unreadable b{color:var(--change);font-weight:600}\
tr.denied .mark,li.denied b{color:var(--denied)}tr.advice .mark,li.advice b{color:var(--advice)}\
tr.good td:last-child{color:var(--dim)}tr.change{background:var(--band)}";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_could_be_markup_is_text() {
        assert_eq!(escape("<b a=\"1\">&"), "&lt;b a=&quot;1&quot;&gt;&amp;");
    }
}
