//! Replays the seeds of the fuzz targets, and every vector, against what the targets check.

#[path = "../../../tests/fuzz/src/codec.rs"]
mod checks;
#[allow(dead_code, reason = "only the bytes are replayed")]
#[path = "../../../tests/vectors/requests/mod.rs"]
mod requests;
#[allow(dead_code, reason = "only the bytes are replayed")]
#[path = "../../../tests/vectors/responses.rs"]
mod responses;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = format!("{}/../../tests/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the seeds are in the tree") {
        let path = entry.expect("the folder can be read").path();
        println!("{}", path.display());
        check(&std::fs::read(&path).expect("a seed can be read"));
        count += 1;
    }
    assert!(count >= 20, "{count} seeds in {folder}");
}

#[test]
fn seeds_of_request() {
    replay("request", checks::request);
}

#[test]
fn seeds_of_response() {
    replay("response", checks::response);
}

#[test]
fn seeds_of_chunked() {
    replay("chunked", checks::chunked);
}

#[test]
fn seeds_of_path() {
    replay("path", checks::path);
}

#[test]
fn vectors_are_seeds_too() {
    for vector in requests::requests() {
        checks::request(&vector.bytes);
        let body = vector.bytes.windows(4).position(|end| end == b"\r\n\r\n").map_or(0, |end| end + 4);
        checks::chunked(&vector.bytes[body..]);
    }
    for vector in responses::responses() {
        checks::response(&vector.bytes);
    }
}
