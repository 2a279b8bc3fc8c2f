//! Documents of both formats, their places and their limits.

use super::*;

fn dump(node: Node<'_>) -> String {
    match node.content() {
        Content::Null => "null".into(),
        Content::Plain(text) => text.into(),
        Content::Quoted(text) => format!("{text:?}"),
        Content::Sequence => format!("[{}]", node.elements().map(dump).collect::<Vec<_>>().join(",")),
        Content::Mapping => {
            let pairs: Vec<_> = node.pairs().map(|(name, _, value)| format!("{name}:{}", dump(value))).collect();
            format!("{{{}}}", pairs.join(","))
        }
    }
}

fn check(format: Format, source: &str, expected: &str) {
    let document = Document::parse("x", source.into(), format).unwrap_or_else(|error| panic!("{source}: {error}"));
    assert_eq!(dump(document.root()), expected, "{source}");
}

fn check_error(format: Format, source: &str, place: (u32, u32), reason: &str) {
    let error = Document::parse("x", source.into(), format).expect_err(source);
    let found = error.place.expect("a syntax error has a place");
    assert!(error.reason.contains(reason), "{source}: {}", error.reason);
    assert_eq!((found.line, found.column), place, "{source}");
}

#[test]
fn yaml_becomes_nodes() {
    let check = |source, expected| check(Format::Yaml, source, expected);
    check("", "null");
    check("a: 1\nb: 'x'\nc:\n", "{a:1,b:\"x\",c:null}");
    check("a: [1, {b: c}]\nd: {}\ne: []", "{a:[1,{b:c}],d:{},e:[]}");
    check("a: \"x\\ny\"\nb: |\n  l1\n  l2\n", "{a:\"x\\ny\",b:\"l1\\nl2\\n\"}");
    check("a: &x {k: [v]}\nb: *x\nc: [*x, *x]", "{a:{k:[v]},b:{k:[v]},c:[{k:[v]},{k:[v]}]}");
    check("!ignore t: &x {k: [v]}\nb: *x\n", "{b:{k:[v]}}");
    check("!ignore t: &x 5\n!ignore u: {}\nb: *x\n", "{b:5}");
    check("a: !!str 5\nb: ! 6\nc: !!int '7'", "{a:\"5\",b:\"6\",c:7}");
    check("null: ~\n", "{null:null}");
    check("- a\n- - b\n  - c\n", "[a,[b,c]]");
}

#[test]
fn json_becomes_nodes() {
    let check = |source, expected| check(Format::Json, source, expected);
    check(" {\"a\": 1, \"b\": [true, null, -1.5e3], \"c\": {}} ", "{a:1,b:[true,null,-1.5e3],c:{}}");
    check("[]", "[]");
    check("[[],[{}]]", "[[],[{}]]");
    check("\"a\\u00e9\\ud83d\\ude00\\n\"", "\"aé😀\\n\"");
    check("\u{feff}{}", "{}");
}

#[test]
fn syntax_errors_have_a_place() {
    check_error(Format::Yaml, "a: 1\nb: [1\n", (2, 4), "not YAML");
    check_error(Format::Yaml, "a: 1\nb: 2\na: 3\n", (3, 1), "`a` is given twice");
    check_error(Format::Yaml, "a: 1\n---\nb: 2\n", (2, 1), "second document");
    check_error(Format::Yaml, "a: &x [*x]\n", (1, 8), "part of what it stands for");
    check_error(Format::Yaml, "[a]: 1\n", (1, 1), "must be text");
    check_error(Format::Json, "{\"a\": 1,}", (1, 9), "name in quotes");
    check_error(Format::Json, "{\"a\": 01}", (1, 7), "number");
    check_error(Format::Json, "{\"a\": \"\\ud800\"}", (1, 8), "escape");
    check_error(Format::Json, "{\"a\": 1} x", (1, 10), "end was expected");
    check_error(Format::Json, "{\"a\": 1, \"a\": 2}", (1, 10), "twice");
    check_error(Format::Json, "", (1, 1), "too early");
    check_error(Format::Json, "[tru]", (1, 2), "a value");
}

#[test]
fn many_names_are_compared_too() {
    let mut source: String = (0..40).map(|index| format!("k{index}: {{a: 1}}\n")).collect();
    check(Format::Yaml, "x: {y: 1}", "{x:{y:1}}");
    assert!(Document::parse("x", source.clone(), Format::Yaml).is_ok());
    source.push_str("k30: 1\n");
    check_error(Format::Yaml, &source, (41, 1), "`k30` is given twice");
}

#[test]
fn alias_bombs_and_deep_nesting_are_refused() {
    let mut bomb = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let before = format!("*a{}", level - 1);
        bomb.push_str(&format!("a{level}: &a{level} [{}]\n", vec![before; 10].join(", ")));
    }
    let error = Document::parse("x", bomb, Format::Yaml).expect_err("a bomb");
    assert!(error.reason.contains("aliases"), "{error}");
    for format in [Format::Yaml, Format::Json] {
        let deep = "[".repeat(100_000);
        assert!(Document::parse("x", deep, format).is_err());
    }
}

#[test]
fn paths_lead_to_places() {
    let source = "static_resources:\n  clusters:\n  - name: a\n  - name: b\n    lbPolicy: X\n    typed:\n      '@type': t\n      value:\n        inner: 1\n    map:\n      x.y: 5\n";
    let document = Document::parse("x", source.into(), Format::Yaml).unwrap();
    let check = |path: &str, line: u32, column: u32| {
        let place = document.locate(path).expect(path);
        assert_eq!((place.line, place.column), (line, column), "{path}");
    };
    check("static_resources.clusters[1].lb_policy", 5, 15);
    check("static_resources.clusters[1]", 4, 5);
    check("static_resources.clusters", 2, 3);
    check("static_resources.clusters[1].missing.more", 4, 5);
    check("static_resources.clusters[1].typed.inner", 9, 16);
    check("static_resources.clusters[1].map[\"x.y\"]", 11, 12);
    check("nothing", 1, 1);
}

#[test]
fn merged_documents_share_their_lists() {
    let first = Document::parse("a", "l: [1, 2]\ns: 1".into(), Format::Yaml).unwrap();
    let second = Document::parse("b", "l: [3]\ns: 2".into(), Format::Yaml).unwrap();
    let check = |path: &str, name: &str, column: u32| {
        let (document, place) = locate(&[&first, &second], path).expect(path);
        assert_eq!((&**document.name(), place.column), (name, column), "{path}");
    };
    check("l[1]", "a", 8);
    check("l[2]", "b", 5);
    check("s", "b", 4);
}
