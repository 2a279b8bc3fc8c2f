//! Server reflection (grpc.reflection.v1, and v1alpha where a server has that alone): which messages a method takes.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use h2::client::SendRequest;
use prost::Message;
use prost_reflect::DescriptorPool;
use prost_reflect::prost_types::FileDescriptorProto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{GrpcError, HEAD_BYTES, Method, framed, listed, split};
use crate::run::target::Target;
use crate::tls::Tls;

/// The newest first.
const SERVICES: [&str; 2] = ["grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"];
/// Files that the types of one method may be spread over.
const FILES_MAX: usize = 1000;
/// All that a server says to one question, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;
/// gRPC's own status for a method that does not exist.
const UNIMPLEMENTED: &str = "12";

/// Both versions have the same messages; fields that are not asked for are left out.
#[derive(Clone, PartialEq, Message)]
struct Question {
    #[prost(string, optional, tag = "3")]
    file_by_filename: Option<String>,
    #[prost(string, optional, tag = "4")]
    file_containing_symbol: Option<String>,
    #[prost(string, optional, tag = "7")]
    list_services: Option<String>,
}

#[derive(Clone, PartialEq, Message)]
struct Answer {
    #[prost(message, optional, tag = "4")]
    files: Option<Files>,
    #[prost(message, optional, tag = "6")]
    services: Option<Services>,
    #[prost(message, optional, tag = "7")]
    error: Option<Refusal>,
}

#[derive(Clone, PartialEq, Message)]
struct Files {
    #[prost(bytes = "vec", repeated, tag = "1")]
    file_descriptor_proto: Vec<Vec<u8>>,
}

#[derive(Clone, PartialEq, Message)]
struct Services {
    #[prost(message, repeated, tag = "1")]
    service: Vec<ServiceName>,
}

#[derive(Clone, PartialEq, Message)]
struct ServiceName {
    #[prost(string, tag = "1")]
    name: String,
}

#[derive(Clone, PartialEq, Message)]
struct Refusal {
    #[prost(int32, tag = "1")]
    code: i32,
    #[prost(string, tag = "2")]
    message: String,
}

/// Why a question has no answer.
enum Failure {
    /// The server does not have this version.
    Unimplemented,
    Other(String),
}

impl From<h2::Error> for Failure {
    fn from(error: h2::Error) -> Failure {
        Failure::Other(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Failure {
        Failure::Other(error.to_string())
    }
}

/// The method that the path of `target` names, as the server tells of it.
///
/// Errors: the server has no reflection, does not know the method, or does not answer within `timeout`.
pub fn ask(target: &Target, tls: Option<&Tls>, timeout: Duration) -> Result<Method, GrpcError> {
    let (service, _) = split(&target.path)?;
    let fail = |reason: String| GrpcError::Reflection { target: target.authority.clone(), reason };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| fail(error.to_string()))?;
    let address = *target.addresses.first().ok_or_else(|| fail("it has no address".to_owned()))?;
    let asked = runtime.block_on(async {
        let tls = tls.map(|tls| tls.offering(b"h2"));
        tokio::time::timeout(timeout, pool(target, address, tls, service)).await
    });
    let pool = match asked {
        Err(_) => return Err(fail("it does not answer".to_owned())),
        Ok(Err(Failure::Unimplemented)) => return Err(fail("it has no such service".to_owned())),
        Ok(Err(Failure::Other(reason))) => return Err(fail(reason)),
        Ok(Ok(pool)) => pool,
    };
    match pool {
        Told::Pool(pool) => Method::find(&pool, &target.path, "what it tells of"),
        Told::Services(known) => Err(GrpcError::Service {
            service: service.to_owned(),
            origin: target.authority.clone(),
            known: listed(known.into_iter()),
        }),
    }
}

enum Told {
    Pool(DescriptorPool),
    /// It does not know the one that was asked for, but these.
    Services(Vec<String>),
}

async fn pool(target: &Target, address: SocketAddr, tls: Option<Tls>, service: &str) -> Result<Told, Failure> {
    let stream = TcpStream::connect(address).await?;
    match tls {
        None => talk(target, stream, service).await,
        Some(tls) => talk(target, TlsConnector::from(tls.config).connect(tls.name, stream).await?, service).await,
    }
}

async fn talk(target: &Target, stream: impl AsyncRead + AsyncWrite + Unpin, service: &str) -> Result<Told, Failure> {
    let (sender, connection) = h2::client::handshake(stream).await?;
    let mut answers = std::pin::pin!(answers(target, sender, service));
    let mut connection = std::pin::pin!(connection);
    let mut is_over = false;
    // The connection does its work while the answers are waited for; what it has to say of its end, they say.
    std::future::poll_fn(|context| {
        if !is_over {
            is_over = connection.as_mut().poll(context).is_ready();
        }
        answers.as_mut().poll(context)
    })
    .await
}

async fn answers(target: &Target, sender: SendRequest<Bytes>, service: &str) -> Result<Told, Failure> {
    let mut asked = Err(Failure::Unimplemented);
    for version in SERVICES {
        let server = Server { target, sender: sender.clone(), version };
        asked = server.tell(service).await;
        if !matches!(asked, Err(Failure::Unimplemented)) {
            break;
        }
    }
    asked
}

struct Server<'t> {
    target: &'t Target,
    sender: SendRequest<Bytes>,
    version: &'static str,
}

impl Server<'_> {
    /// All files that `service` needs.
    async fn tell(&self, service: &str) -> Result<Told, Failure> {
        let symbol = Question { file_containing_symbol: Some(service.to_owned()), ..Question::default() };
        let answer = self.ask(&symbol).await?;
        let Some(files) = answer.files.filter(|files| !files.file_descriptor_proto.is_empty()) else {
            let list = Question { list_services: Some(String::new()), ..Question::default() };
            let known = self.ask(&list).await?.services;
            let reason = answer.error.map_or_else(|| "no files".to_owned(), |error| error.message);
            let known = known.ok_or(Failure::Other(reason))?.service;
            return Ok(Told::Services(known.into_iter().map(|service| service.name).collect()));
        };
        let mut known: BTreeMap<String, FileDescriptorProto> = BTreeMap::new();
        let mut found = files.file_descriptor_proto;
        loop {
            for bytes in found {
                let file = FileDescriptorProto::decode(bytes.as_slice())
                    .map_err(|error| Failure::Other(format!("it sent what is no file of descriptors: {error}")))?;
                known.insert(file.name().to_owned(), file);
            }
            let missing = known.values().flat_map(|file| &file.dependency).find(|name| !known.contains_key(*name));
            let Some(missing) = missing.cloned() else { break };
            if known.len() >= FILES_MAX {
                return Err(Failure::Other(format!("its types are spread over more than {FILES_MAX} files")));
            }
            let question = Question { file_by_filename: Some(missing.clone()), ..Question::default() };
            found = self.ask(&question).await?.files.unwrap_or_default().file_descriptor_proto;
            if found.is_empty() {
                return Err(Failure::Other(format!("it does not have the file {missing} that its types need")));
            }
            // A file under another name than the one asked for would be asked for without end.
            let names = |bytes: &Vec<u8>| {
                FileDescriptorProto::decode(bytes.as_slice()).is_ok_and(|file| file.name() == missing)
            };
            if !found.iter().any(names) {
                return Err(Failure::Other(format!("it sent another file than {missing}")));
            }
        }
        let mut pool = DescriptorPool::new();
        let added = pool.add_file_descriptor_protos(known.into_values());
        added.map_err(|error| Failure::Other(format!("its descriptors contradict each other: {error}")))?;
        Ok(Told::Pool(pool))
    }

    /// One question, as a call of its own.
    async fn ask(&self, question: &Question) -> Result<Answer, Failure> {
        let scheme = if self.target.is_tls { "https" } else { "http" };
        let uri = format!("{scheme}://{}/{}/ServerReflectionInfo", self.target.authority, self.version);
        let request = http::Request::post(uri).version(http::Version::HTTP_2);
        let request = request.header("content-type", "application/grpc").header("te", "trailers").body(());
        let request = request.map_err(|error| Failure::Other(error.to_string()))?;
        let mut sender = self.sender.clone().ready().await?;
        let (response, mut stream) = sender.send_request(request, false)?;
        stream.send_data(framed(&question.encode_to_vec()), true)?;
        let (head, mut body) = response.await?.into_parts();
        let mut bytes = BytesMut::new();
        while let Some(chunk) = body.data().await {
            let chunk = chunk?;
            if bytes.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Failure::Other("its answer is too long".to_owned()));
            }
            body.flow_control().release_capacity(chunk.len())?;
            bytes.extend_from_slice(&chunk);
        }
        let trailers = body.trailers().await?;
        let field = |name| {
            let found = trailers.as_ref().and_then(|fields| fields.get(name)).or_else(|| head.headers.get(name));
            found.map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        match field("grpc-status").as_deref() {
            Some("0") => {}
            Some(UNIMPLEMENTED) => return Err(Failure::Unimplemented),
            Some(status) => {
                let message = field("grpc-message").unwrap_or_default();
                return Err(Failure::Other(format!("status {status} {message}")));
            }
            // A server of HTTP alone.
            None => return Err(Failure::Other(format!("status {} without one of gRPC", head.status.as_u16()))),
        }
        if bytes.len() < HEAD_BYTES {
            return Err(Failure::Other("it answers with nothing".to_owned()));
        }
        let is_compressed = bytes.get_u8() != 0;
        let length = bytes.get_u32() as usize;
        let message = bytes.get(..length).filter(|_| !is_compressed);
        let message = message.ok_or_else(|| Failure::Other("its answer is cut off".to_owned()))?;
        Answer::decode(message).map_err(|error| Failure::Other(error.to_string()))
    }
}
