//! What a theme file says.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use serde::Deserialize;
use serde_json::{Map, Value};

use crate::tls::{Certificate, TlsClient};

/// One configuration and the requests sent through it.
#[derive(Clone, Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Theme {
    /// File name without extension.
    #[serde(skip)]
    pub name: String,
    /// What the theme is about.
    pub about: String,
    /// Listening addresses by label, the first one the listener's `address`, the others its `additional_addresses`.
    #[serde(default = "one_tcp_listener")]
    pub listen: Vec<Listen>,
    /// Backends by label: `tcp`, `tcp6`, `unix`, or `closed` for a port where nobody listens.
    #[serde(default = "one_tcp_backend")]
    pub backends: BTreeMap<String, BackendKind>,
    /// Bytes that a backend can be told to send with `script=NAME`.
    #[serde(default)]
    pub scripts: BTreeMap<String, String>,
    /// Merged into the HTTP connection manager.
    #[serde(default)]
    pub hcm: Map<String, Value>,
    /// Merged into the route configuration.
    #[serde(default)]
    pub route_config: Map<String, Value>,
    /// The virtual hosts; by default one that sends everything to cluster `a`.
    #[serde(default)]
    pub virtual_hosts: Vec<Value>,
    /// Clusters besides the one that each backend gets under its label. `endpoints` is short for a load assignment.
    #[serde(default)]
    pub clusters: Vec<Map<String, Value>>,
    /// Merged into the listener's only filter chain.
    #[serde(default)]
    pub chain: Map<String, Value>,
    /// Merged into the listener.
    #[serde(default)]
    pub listener: Map<String, Value>,
    /// Whole listeners besides the one under test, for instance as endpoints of its clusters on a port of a `closed` backend.
    #[serde(default)]
    pub more_listeners: Vec<Value>,
    /// Certificates in `${folder}/NAME.pem` and `${folder}/NAME.key`.
    #[serde(default)]
    pub certificates: BTreeMap<String, Certificate>,
    /// Merged into the bootstrap.
    #[serde(default)]
    pub bootstrap: Map<String, Value>,
    /// Operators to log besides those of every theme, by the name they get.
    #[serde(default)]
    pub log: BTreeMap<String, String>,
    /// A text log besides the JSON one, with this format; empty for Envoy's default format.
    #[serde(default)]
    pub text_log: Option<String>,
    /// Whether the requests depend on time so much that the theme must not share the machine.
    #[serde(default)]
    pub alone: bool,
    /// What is sent.
    pub requests: Vec<Request>,
}

/// A listening address.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum Listen {
    /// `127.0.0.1`
    Tcp,
    /// `::1`
    Tcp6,
    /// A path.
    Unix,
}

/// What listens where a backend is expected.
#[derive(Clone, Copy, Debug, Deserialize, PartialEq, Eq)]
#[serde(rename_all = "lowercase")]
pub enum BackendKind {
    /// `127.0.0.1`
    Tcp,
    /// `::1`
    Tcp6,
    /// A path.
    Unix,
    /// Nobody.
    Closed,
}

/// One request, or one for each value of `each` with `$each` replaced.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Request {
    /// Unique in its theme; made from method and path where empty.
    pub case: String,
    /// Index of the listening address.
    pub to: usize,
    /// Path of a GET.
    pub get: Option<String>,
    /// Path of a HEAD.
    pub head: Option<String>,
    /// Path of a POST.
    pub post: Option<String>,
    /// Method, where it is another.
    pub method: Option<String>,
    /// Request target for `method`.
    pub path: Option<String>,
    /// `host` field, `a.test` by default; empty for none.
    pub host: Option<String>,
    /// `1.1` by default.
    pub version: Option<String>,
    /// Field lines.
    pub headers: Vec<String>,
    /// Content of the `x-backend` field: what the backend shall do.
    pub backend: Option<String>,
    /// Body with a length.
    pub body: Option<String>,
    /// Length of a body of letters.
    pub body_size: Option<usize>,
    /// Body in chunks.
    pub chunks: Option<Vec<String>>,
    /// Trailer fields after the chunks.
    pub trailers: Vec<String>,
    /// Exact bytes instead of all the above, in pieces sent 30 ms apart; `$case` is replaced.
    pub raw: Option<Vec<String>>,
    /// The client speaks TLS.
    pub tls: Option<TlsClient>,
    /// Reads to the end of the connection instead of replies.
    pub until_end: bool,
    /// Replies to read; 1 by default.
    pub responses: Option<usize>,
    /// Label of a connection kept for later requests.
    pub connection: Option<String>,
    /// Ends the sending direction after the request.
    pub finish: bool,
    /// Resets the connection this many milliseconds after sending, instead of reading the reply.
    pub abort_ms: Option<u64>,
    /// Milliseconds to wait before looking at what the backends received.
    pub settle_ms: Option<u64>,
    /// Milliseconds to wait before sending.
    pub pause_ms: Option<u64>,
    /// Values of `$each`.
    pub each: Vec<Value>,
    /// Short for `each: [0, 1, ...]`.
    pub count: Option<usize>,
}

impl Request {
    /// The method.
    pub fn method(&self) -> String {
        let named = [(&self.get, "GET"), (&self.head, "HEAD"), (&self.post, "POST")];
        let known = named.iter().find(|(path, _)| path.is_some()).map(|(_, method)| (*method).to_owned());
        let raw = || Some(self.raw.as_ref()?.first()?.split(' ').next()?.to_owned());
        known.or_else(|| self.method.clone()).or_else(raw).unwrap_or_else(|| "GET".into())
    }

    /// The request target.
    pub fn target(&self) -> String {
        [&self.get, &self.head, &self.post, &self.path].into_iter().flatten().next().cloned().unwrap_or("/".into())
    }

    /// The pieces of bytes to send.
    pub fn pieces(&self) -> Vec<Vec<u8>> {
        if let Some(raw) = &self.raw {
            return raw.iter().map(|piece| latin1_bytes(&piece.replace("$case", &self.case))).collect();
        }
        let version = self.version.as_deref().unwrap_or("1.1");
        let mut text = format!("{} {} HTTP/{version}\r\n", self.method(), self.target());
        match self.host.as_deref() {
            None => text += "host: a.test\r\n",
            Some("") => {}
            Some(host) => text += &format!("host: {host}\r\n"),
        }
        text += &format!("x-case: {}\r\n", self.case);
        if let Some(backend) = &self.backend {
            text += &format!("x-backend: {backend}\r\n");
        }
        for line in &self.headers {
            text += line;
            text += "\r\n";
        }
        let body = self.body.clone().or_else(|| Some("0123456789abcdef".repeat(self.body_size? / 16)));
        if let Some(body) = body {
            text += &format!("content-length: {}\r\n\r\n{body}", body.len());
        } else if let Some(chunks) = &self.chunks {
            text += "transfer-encoding: chunked\r\n\r\n";
            for chunk in chunks {
                text += &format!("{:x}\r\n{chunk}\r\n", chunk.len());
            }
            text += "0\r\n";
            for line in &self.trailers {
                text += line;
                text += "\r\n";
            }
            text += "\r\n";
        } else {
            text += "\r\n";
        }
        vec![latin1_bytes(&text)]
    }

    /// This request for each of its values.
    fn expanded(self) -> Vec<Self> {
        let mut values: Vec<String> = self.each.iter().map(plain).collect();
        values.extend((0..self.count.unwrap_or(0)).map(|number| number.to_string()));
        if values.is_empty() {
            return vec![self];
        }
        let one = |(index, value): (usize, &String)| {
            let mut request = self.clone();
            let fill = |text: &mut String| *text = text.replace("$each", value).replace("$index", &index.to_string());
            let named = !request.case.is_empty();
            if named && !request.case.contains("$each") && !request.case.contains("$index") {
                request.case += " $each";
            }
            fill(&mut request.case);
            [&mut request.get, &mut request.head, &mut request.post, &mut request.path, &mut request.host]
                .into_iter()
                .chain([&mut request.method, &mut request.backend, &mut request.body, &mut request.version])
                .flatten()
                .for_each(fill);
            request.headers.iter_mut().for_each(fill);
            request.raw.iter_mut().flatten().for_each(fill);
            if let Some(tls) = &mut request.tls {
                tls.sni.iter_mut().chain(&mut tls.alpn).chain(&mut tls.certificate).for_each(fill);
            }
            request
        };
        values.iter().enumerate().map(one).collect()
    }
}

/// Every theme in `folder`, in order of name, with its requests expanded and named.
///
/// # Panics
/// Where a file is not a theme or two requests of a theme have the same name.
pub fn themes(folder: &Path) -> Vec<Theme> {
    let entries = fs::read_dir(folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut paths: Vec<_> = entries.filter_map(|entry| entry.ok().map(|entry| entry.path())).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "yaml"));
    paths.sort();
    paths.iter().map(|path| read(path)).collect()
}

fn read(path: &Path) -> Theme {
    let text = fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let mut theme: Theme = serde_saphyr::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    theme.name = path.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let requests = std::mem::take(&mut theme.requests);
    theme.requests = requests.into_iter().flat_map(Request::expanded).collect();
    let mut seen = BTreeMap::new();
    for request in &mut theme.requests {
        if request.case.is_empty() {
            request.case = format!("{} {}", request.method(), request.target());
        }
        let count: &mut usize = seen.entry(request.case.clone()).or_default();
        *count += 1;
        assert!(*count == 1, "{}: two requests are called {:?}", path.display(), request.case);
    }
    theme
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Characters up to U+00FF as the byte of that number, so that a file of text can hold any byte.
fn latin1_bytes(text: &str) -> Vec<u8> {
    let byte = |character| u8::try_from(u32::from(character)).expect("characters up to U+00FF stand for bytes");
    text.chars().map(byte).collect()
}

fn one_tcp_listener() -> Vec<Listen> {
    vec![Listen::Tcp]
}

fn one_tcp_backend() -> BTreeMap<String, BackendKind> {
    BTreeMap::from([("a".to_owned(), BackendKind::Tcp)])
}
