//! Replays the seeds of the fuzz targets for plan files and objectives, and damage done to each.

#[path = "../../tests/fuzz/src/load.rs"]
mod checks;

fn replay(target: &str, check: fn(&[u8])) {
    let folder = format!("{}/../tests/fuzz/seeds/{target}", env!("CARGO_MANIFEST_DIR"));
    let mut count = 0;
    for entry in std::fs::read_dir(&folder).expect("the seeds are in the tree") {
        let path = entry.expect("the folder can be read").path();
        println!("{}", path.display());
        let seed = std::fs::read(&path).expect("a seed can be read");
        check(&seed);
        for at in 0..seed.len() {
            check(&seed[..at]);
            for byte in *b"0.-#k \n," {
                let mut damaged = seed.clone();
                damaged[at] = byte;
                check(&damaged);
            }
        }
        count += 1;
    }
    assert!(count >= 8, "{count} seeds in {folder}");
}

#[test]
fn seeds_of_plans() {
    replay("load_plan", checks::plan);
}

#[test]
fn seeds_of_objectives() {
    replay("load_objective", checks::objective);
}
