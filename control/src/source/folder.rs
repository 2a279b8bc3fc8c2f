//! A folder tree of files as intent.
//!
//! A scan re-reads what changed and nothing else. A file that cannot be read or parsed keeps its last good objects, and an object that
//! is refused keeps its last good version, until they are mended; both are told in the findings. Of two objects with one name the
//! first counts, in the order of paths.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use torus_xds::Diagnostic;

use super::object::{Object, ResourceName};
use super::read::read;

/// What judges an object before it counts: its errors, or nothing.
pub type Admit = fn(&mut Object) -> Vec<Diagnostic>;

/// A folder and what was last read from it.
pub struct Folder {
    root: PathBuf,
    admit: Admit,
    files: BTreeMap<PathBuf, File>,
    folders: BTreeSet<PathBuf>,
    /// All objects that count, ordered by file and line.
    objects: Vec<Object>,
    /// Objects whose name another one has already.
    duplicates: Vec<Object>,
    /// The tree itself: unreadable folders, too deep ones, the root gone.
    tree_findings: Vec<Diagnostic>,
    duplicate_findings: Vec<Diagnostic>,
    /// Namespace and name of the Services whose endpoints the last scan found changed.
    touched: BTreeSet<(String, String)>,
}

struct File {
    stamp: Stamp,
    findings: Vec<Diagnostic>,
}

/// What tells that a file was written or replaced.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Stamp {
    modified: Option<SystemTime>,
    bytes: u64,
    inode: u64,
}

/// Whether a scan found something new.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scan {
    Unchanged,
    /// Only where services are found: EndpointSlices and Endpoints.
    EndpointsChanged,
    /// Besides these only virtual services; `mesh` tells whether one of them is for sidecars.
    RoutesChanged {
        mesh: bool,
    },
    Changed,
}

impl Scan {
    /// One change after another.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::Changed, _) | (_, Self::Changed) => Self::Changed,
            (Self::RoutesChanged { mesh: one }, Self::RoutesChanged { mesh: two }) => {
                Self::RoutesChanged { mesh: one || two }
            }
            (Self::RoutesChanged { mesh }, _) | (_, Self::RoutesChanged { mesh }) => Self::RoutesChanged { mesh },
            (Self::EndpointsChanged, _) | (_, Self::EndpointsChanged) => Self::EndpointsChanged,
            (Self::Unchanged, Self::Unchanged) => Self::Unchanged,
        }
    }
}

impl Folder {
    /// The folder at `root`, or the one file there; nothing is read before the first scan.
    pub fn new(root: impl Into<PathBuf>, admit: Admit) -> Self {
        Self {
            root: root.into(),
            admit,
            files: BTreeMap::new(),
            folders: BTreeSet::new(),
            objects: Vec::new(),
            duplicates: Vec::new(),
            tree_findings: Vec::new(),
            duplicate_findings: Vec::new(),
            touched: BTreeSet::new(),
        }
    }

    /// The objects that count.
    pub fn objects(&self) -> &[Object] {
        &self.objects
    }

    /// Everything that is wrong, by file.
    pub fn findings(&self) -> impl Iterator<Item = &Diagnostic> {
        let files = self.files.values().flat_map(|file| &file.findings);
        self.tree_findings.iter().chain(files).chain(&self.duplicate_findings)
    }

    /// The folders of the tree, for a watch.
    pub fn folders(&self) -> impl Iterator<Item = &Path> {
        self.folders.iter().map(PathBuf::as_path)
    }

    /// Namespace and name of the Services whose endpoints the last scan found changed.
    pub fn touched(&self) -> &BTreeSet<(String, String)> {
        &self.touched
    }

    /// Takes up what changed since the last scan.
    pub fn scan(&mut self) -> Scan {
        self.touched.clear();
        let mut walk = Walk::default();
        walk.visit(&self.root, 0);
        if let Some(finding) = walk.root_lost(&self.root) {
            // A folder that vanished takes nothing with it: a mount may be on its way back.
            let scan = if self.tree_findings == [finding.clone()] { Scan::Unchanged } else { Scan::Changed };
            self.tree_findings = vec![finding];
            return scan;
        }
        let mut changed = walk.findings != self.tree_findings;
        self.tree_findings = walk.findings;
        self.folders = walk.folders;
        let gone: Vec<PathBuf> = self.files.keys().filter(|path| !walk.files.contains_key(*path)).cloned().collect();
        let fresh: Vec<(PathBuf, Stamp)> = walk
            .files
            .into_iter()
            .filter(|(path, stamp)| self.files.get(path).is_none_or(|file| file.stamp != *stamp))
            .collect();
        changed |= !gone.is_empty() || !fresh.is_empty();
        if !changed {
            return Scan::Unchanged;
        }
        if gone.is_empty() && self.duplicates.is_empty() && fresh.iter().all(|(path, stamp)| self.refresh(path, *stamp))
        {
            return Scan::EndpointsChanged;
        }
        let before_settling = self.duplicates.len();
        self.objects.append(&mut self.duplicates);
        let mut scan = Scan::EndpointsChanged;
        for path in gone {
            self.files.remove(&path);
            let lost = self.take_objects_of(&display(&path));
            scan = scan.and(difference(&lost, &[]));
            self.touched.extend(lost.iter().filter_map(service_of));
        }
        for (path, stamp) in fresh {
            scan = scan.and(self.read_file(path, stamp));
        }
        self.settle();
        // What was hidden by another may count now.
        if before_settling == self.duplicates.len() { scan } else { Scan::Changed }
    }

    /// Puts the objects of one file in the place of those before, where they have the same names in the same order and differ
    /// in endpoints at most. Returns whether it could; if not, nothing happened.
    fn refresh(&mut self, path: &Path, stamp: Stamp) -> bool {
        let file = display(path);
        if !self.files.get(path).is_some_and(|known| known.findings.is_empty()) {
            return false;
        }
        let Some(mut objects) = fs::read_to_string(path).ok().and_then(|text| read(&file, &text).ok()) else {
            return false;
        };
        objects.sort_by(|one, other| one.place.cmp(&other.place));
        let first = self.objects.partition_point(|object| *object.place.file < *file);
        let count =
            self.objects.get(first..).map_or(0, |rest| rest.partition_point(|object| *object.place.file == *file));
        let Some(before) = self.objects.get_mut(first..first + count).filter(|list| list.len() == objects.len()) else {
            return false;
        };
        let alike = |(one, other): (&Object, &Object)| {
            one.resource == other.resource && (is_endpoints(one) || one.content == other.content)
        };
        if !before.iter().zip(&objects).all(alike) || !objects.iter_mut().all(|object| (self.admit)(object).is_empty())
        {
            return false;
        }
        for (old, new) in before.iter_mut().zip(objects) {
            if old.content != new.content {
                self.touched.extend([&*old, &new].into_iter().filter_map(service_of));
            }
            *old = new;
        }
        self.files.insert(path.to_owned(), File { stamp, findings: Vec::new() });
        true
    }

    /// Takes up one file. Returns what differs from before.
    fn read_file(&mut self, path: PathBuf, stamp: Stamp) -> Scan {
        let file = display(&path);
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(error) => {
                let reason = format!("cannot be read: {error}; the objects last read from it stay in force");
                self.files.insert(path, File { stamp, findings: vec![Diagnostic::error(file, "", reason)] });
                return Scan::Changed;
            }
        };
        // Programs that write in place empty a file first, and may be seen at it.
        if text.trim().is_empty() && self.objects.iter().any(|object| *object.place.file == *file) {
            let reason = "is empty; the objects last read from it stay in force until it is written or deleted";
            self.files.insert(path, File { stamp, findings: vec![Diagnostic::error(file, "", reason)] });
            return Scan::Changed;
        }
        let mut scan = Scan::Changed;
        let findings = match read(&file, &text) {
            Ok(objects) => {
                let before = self.take_objects_of(&file);
                scan = difference(&before, &objects);
                self.touched.extend(before.iter().chain(&objects).filter_map(service_of));
                self.admit_all(objects, before)
            }
            Err(findings) => findings,
        };
        let is_good = findings.is_empty();
        let was_good = self.files.insert(path, File { stamp, findings }).is_none_or(|file| file.findings.is_empty());
        if is_good && was_good { scan } else { Scan::Changed }
    }

    /// Lets in what is good; an object that is refused keeps the version before, if it had one.
    fn admit_all(&mut self, objects: Vec<Object>, before: Vec<Object>) -> Vec<Diagnostic> {
        let mut last_good: HashMap<ResourceName, Object> =
            before.into_iter().map(|object| (object.resource.clone(), object)).collect();
        let mut findings = Vec::new();
        for mut object in objects {
            let errors = (self.admit)(&mut object);
            if errors.is_empty() {
                self.objects.push(object);
            } else {
                findings.extend(errors);
                self.objects.extend(last_good.remove(&object.resource));
            }
        }
        findings
    }

    fn take_objects_of(&mut self, file: &str) -> Vec<Object> {
        self.objects.extract_if(.., |object| &*object.place.file == file).collect()
    }

    /// Orders the objects, and sets aside those whose name is taken.
    fn settle(&mut self) {
        self.objects.sort_by(|one, other| one.place.cmp(&other.place));
        let mut first = HashMap::with_capacity(self.objects.len());
        let mut findings = Vec::new();
        let mut keep = Vec::with_capacity(self.objects.len());
        for object in self.objects.drain(..) {
            match first.get(&object.resource) {
                None => {
                    first.insert(object.resource.clone(), object.place.clone());
                    keep.push(object);
                }
                Some(place) => {
                    let name = &object.resource;
                    let reason = format!(
                        "{} is defined twice: the one at {}:{}:{} counts; delete or rename one of the two",
                        name, place.file, place.line, place.column
                    );
                    findings.push(object.diagnose("", reason));
                    self.duplicates.push(object);
                }
            }
        }
        self.objects = keep;
        self.duplicate_findings = findings;
    }
}

/// What differs between the objects of a file before and after.
fn difference(before: &[Object], after: &[Object]) -> Scan {
    let old: HashMap<&ResourceName, &Object> = before.iter().map(|object| (&object.resource, object)).collect();
    let new: HashMap<&ResourceName, &Object> = after.iter().map(|object| (&object.resource, object)).collect();
    let kind = |object: &Object| match (object.resource.group.as_str(), object.resource.kind.as_str()) {
        _ if is_endpoints(object) => Scan::EndpointsChanged,
        ("networking.istio.io", "VirtualService") => Scan::RoutesChanged { mesh: is_for_mesh(object) },
        _ => Scan::Changed,
    };
    let mut scan =
        if old.len() == before.len() && new.len() == after.len() { Scan::EndpointsChanged } else { Scan::Changed };
    for (name, object) in &new {
        // Routes tell where they were written.
        let same = |known: &&&Object| {
            known.content == object.content && (known.place == object.place || object.resource.kind != "VirtualService")
        };
        if old.get(name).filter(same).is_none() {
            scan = scan.and(kind(object));
        }
    }
    let changed = old.iter().filter(|(name, object)| new.get(*name).is_none_or(|now| now.content != object.content));
    changed.fold(scan, |scan, (_, object)| scan.and(kind(object)))
}

fn is_for_mesh(object: &Object) -> bool {
    let gateways = object.spec().get("gateways").and_then(serde_json::Value::as_array);
    gateways.is_none_or(|names| names.is_empty() || names.iter().any(|name| name == "mesh"))
}

/// The Service that endpoints are of.
fn service_of(object: &Object) -> Option<(String, String)> {
    let name = match object.resource.kind.as_str() {
        _ if !is_endpoints(object) => return None,
        "EndpointSlice" => object.labels.get("kubernetes.io/service-name")?,
        _ => &object.resource.name,
    };
    Some((object.resource.namespace.clone(), name.clone()))
}

fn is_endpoints(object: &Object) -> bool {
    matches!(
        (object.resource.group.as_str(), object.resource.kind.as_str()),
        ("discovery.k8s.io", "EndpointSlice") | ("", "Endpoints")
    )
}

/// What a walk of the tree found.
#[derive(Default)]
struct Walk {
    files: BTreeMap<PathBuf, Stamp>,
    folders: BTreeSet<PathBuf>,
    findings: Vec<Diagnostic>,
}

impl Walk {
    fn visit(&mut self, path: &Path, depth: usize) {
        let metadata = match fs::metadata(path) {
            Ok(metadata) => metadata,
            // Gone between listing and looking, or a link to nothing: the next scan sees what it is then.
            Err(_) if depth > 0 => return,
            Err(error) => {
                self.findings.push(Diagnostic::error(display(path), "", format!("cannot be read: {error}")));
                return;
            }
        };
        if metadata.is_file() {
            let known = path.extension().is_some_and(|end| end == "yaml" || end == "yml" || end == "json");
            if known || depth == 0 {
                self.files.insert(path.to_owned(), Stamp::of(&metadata));
            }
            return;
        }
        if !metadata.is_dir() {
            return;
        }
        if depth > DEPTH_MAX {
            let reason = format!("folders are nested deeper than {DEPTH_MAX} levels, or a link leads back; not read");
            self.findings.push(Diagnostic::error(display(path), "", reason));
            return;
        }
        match fs::read_dir(path) {
            Ok(entries) => {
                self.folders.insert(path.to_owned());
                for entry in entries.flatten() {
                    // Editors' scratch files, and the inner links of mounted ConfigMaps.
                    if !entry.file_name().as_encoded_bytes().starts_with(b".") {
                        self.visit(&entry.path(), depth + 1);
                    }
                }
            }
            Err(error) => {
                self.findings.push(Diagnostic::error(display(path), "", format!("cannot be listed: {error}")));
            }
        }
    }

    fn root_lost(&self, root: &Path) -> Option<Diagnostic> {
        let lost = self.files.is_empty() && self.folders.is_empty();
        let because = self.findings.first().map_or("not a folder", |finding| finding.reason.as_str());
        let reason = format!("{because}; what was last read from here stays in force");
        lost.then(|| Diagnostic::error(display(root), "", reason))
    }
}

impl Stamp {
    fn of(metadata: &fs::Metadata) -> Self {
        use std::os::unix::fs::MetadataExt;
        Self { modified: metadata.modified().ok(), bytes: metadata.len(), inode: metadata.ino() }
    }
}

fn display(path: &Path) -> Arc<str> {
    path.to_string_lossy().into()
}

/// Deeper trees are links that lead back.
const DEPTH_MAX: usize = 16;

#[cfg(test)]
mod tests {
    use super::*;

    fn service(name: &str, port: u32) -> String {
        format!("apiVersion: v1\nkind: Service\nmetadata: {{name: {name}}}\nspec: {{ports: [{{port: {port}}}]}}\n---\n")
    }

    fn told(folder: &Folder) -> Vec<String> {
        folder.findings().map(|finding| finding.line().to_string()).collect()
    }

    fn names(folder: &Folder) -> Vec<&str> {
        folder.objects().iter().map(|object| object.resource.name.as_str()).collect()
    }

    #[test]
    fn edits_are_taken_up_and_broken_ones_survived() {
        let scratch = tempfile::tempdir().unwrap();
        let at = |name: &str| scratch.path().join(name);
        fs::write(at("a.yaml"), service("cart", 80)).unwrap();
        fs::create_dir(at("deep")).unwrap();
        fs::write(at("deep/b.yml"), service("pay", 80)).unwrap();
        fs::write(at("notes.txt"), "not read").unwrap();
        let mut folder = Folder::new(scratch.path(), |_| Vec::new());
        assert_eq!(folder.scan(), Scan::Changed);
        assert_eq!(names(&folder), ["cart", "pay"]);
        assert_eq!(folder.scan(), Scan::Unchanged);
        assert_eq!(folder.folders().count(), 2);

        fs::write(at("a.yaml"), "apiVersion: v1\nkind: [\n").unwrap();
        assert_eq!(folder.scan(), Scan::Changed);
        assert_eq!(names(&folder), ["cart", "pay"], "the last good version stays");
        assert!(told(&folder)[0].contains("a.yaml:"), "{:?}", told(&folder));

        fs::write(at("a.yaml"), "\n").unwrap();
        assert_eq!(folder.scan(), Scan::Changed);
        assert_eq!(names(&folder), ["cart", "pay"], "emptied is not deleted");
        assert!(told(&folder)[0].contains("a.yaml: is empty"), "{:?}", told(&folder));

        fs::write(at("a.yaml"), service("cart", 80) + &service("pay", 81)).unwrap();
        folder.scan();
        assert_eq!(names(&folder), ["cart", "pay"]);
        let finding = &told(&folder)[0];
        assert!(finding.contains("b.yml:1:1") && finding.contains("a.yaml:6:1"), "{finding}");

        fs::remove_file(at("a.yaml")).unwrap();
        folder.scan();
        assert_eq!((names(&folder), told(&folder).len()), (vec!["pay"], 0));

        fs::remove_dir_all(scratch.path()).unwrap();
        assert_eq!(folder.scan(), Scan::Changed);
        assert_eq!(folder.scan(), Scan::Unchanged);
        assert_eq!(names(&folder), ["pay"]);
        assert!(told(&folder)[0].contains("stays in force"));
    }

    #[test]
    fn a_change_of_endpoints_alone_is_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("a.yaml");
        let slice = |address: &str| {
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata: {{name: cart-1}}\nendpoints: [{{addresses: [{address}]}}]\n"
            )
        };
        let mut folder = Folder::new(scratch.path(), |_| Vec::new());
        let mut check = |text: String, wanted: Scan| {
            fs::write(&file, &text).unwrap();
            assert_eq!(folder.scan(), wanted, "{text}");
        };
        check(service("cart", 80) + &slice("10.0.0.1"), Scan::Changed);
        check(service("cart", 80) + &slice("10.0.0.22"), Scan::EndpointsChanged);
        check(
            service("cart", 80) + &slice("10.0.0.23") + "---\n" + &slice("10.0.0.4").replace("cart-1", "cart-2"),
            Scan::EndpointsChanged,
        );
        check(service("cart", 80) + &slice("10.0.0.23"), Scan::EndpointsChanged);
        check(service("cart", 8080) + &slice("10.0.0.22"), Scan::Changed);
    }

    #[test]
    fn a_change_of_routes_alone_is_told_apart() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("a.yaml");
        let route = |gateway: &str, timeout: u32| {
            format!(
                "apiVersion: networking.istio.io/v1\nkind: VirtualService\nmetadata: {{name: cart}}\nspec: {{gateways: [{gateway}], http: [{{timeout: {timeout}s}}]}}\n"
            )
        };
        let mut folder = Folder::new(scratch.path(), |_| Vec::new());
        let mut check = |text: String, wanted: Scan| {
            fs::write(&file, &text).unwrap();
            assert_eq!(folder.scan(), wanted, "{text}");
        };
        check(service("cart", 80) + &route("edge", 1), Scan::Changed);
        check(service("cart", 80) + &route("edge", 22), Scan::RoutesChanged { mesh: false });
        check(service("cart", 80) + &route("mesh", 22), Scan::RoutesChanged { mesh: true });
        check(service("cart", 80) + &route("edge", 3), Scan::RoutesChanged { mesh: true });
        check(service("cart", 80), Scan::RoutesChanged { mesh: false });
        check(service("cart", 8080) + &route("edge", 3), Scan::Changed);
    }

    #[test]
    fn a_refused_object_keeps_its_last_good_version() {
        let scratch = tempfile::tempdir().unwrap();
        let file = scratch.path().join("a.yaml");
        let mut folder = Folder::new(scratch.path(), |object| {
            let port = object.content["spec"]["ports"][0]["port"].as_u64();
            let refused = (port == Some(0)).then(|| object.diagnose("spec.ports[0].port", "must not be 0".into()));
            refused.into_iter().collect()
        });
        fs::write(&file, service("cart", 80)).unwrap();
        folder.scan();
        fs::write(&file, service("cart", 0) + &service("other", 8080)).unwrap();
        folder.scan();
        assert_eq!(names(&folder), ["cart", "other"]);
        assert_eq!(folder.objects()[0].content["spec"]["ports"][0]["port"], 80);
        assert!(told(&folder)[0].contains("a.yaml:4:"), "{:?}", told(&folder));
    }
}
