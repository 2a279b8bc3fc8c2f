//! Header changes as routes configure them.

use envoy_types::pb::envoy::config::core::v3::{
    HeaderValue, HeaderValueOption, header_value_option::HeaderAppendAction,
};
use torus_codec::RequestHead;
use torus_proxy::config::parse::context::ParseContext;
use torus_proxy::route::mutation::{Mutations, Side};
use torus_proxy::route::scratch::Scratch;
use torus_proxy::telemetry::stream_info::StreamInfo;

use crate::head::{BROWSER_REQUEST, RequestParse};

/// Four fields are set, one of them by an operator, and two removed.
pub struct Mutation {
    mutations: Mutations,
    info: StreamInfo,
    parse: RequestParse,
    scratch: Scratch,
}

impl Mutation {
    /// `None` where the changes are refused.
    pub fn new() -> Option<Self> {
        let add = |name: &str, value: &str, action: HeaderAppendAction| HeaderValueOption {
            header: Some(HeaderValue { key: name.to_owned(), value: value.to_owned(), ..HeaderValue::default() }),
            append_action: action.into(),
            ..HeaderValueOption::default()
        };
        let additions = [
            add("x-mesh-source", "gateway", HeaderAppendAction::OverwriteIfExistsOrAdd),
            add("x-forwarded-path", "%REQ(:PATH)%", HeaderAppendAction::OverwriteIfExistsOrAdd),
            add("accept-language", "en", HeaderAppendAction::OverwriteIfExistsOrAdd),
            add("x-team", "checkout", HeaderAppendAction::AppendIfExistsOrAdd),
        ];
        let removals = ["referer".to_owned(), "sec-fetch-site".to_owned()];
        let mutations = Mutations::parse("request", &additions, &removals, &mut ParseContext::new(1)).ok()?;
        let parse = RequestParse::new(BROWSER_REQUEST);
        let mut bench = Self { mutations, info: StreamInfo::default(), parse, scratch: Scratch::default() };
        bench.run();
        bench.prepare();
        Some(bench)
    }

    /// A fresh head to change; not part of the work.
    pub fn prepare(&mut self) {
        self.parse.run();
    }

    /// Makes the changes once; how many fields the head then has.
    pub fn run(&mut self) -> usize {
        let RequestHead { headers, .. } = self.parse.head_mut();
        self.mutations.apply(Side::Request, &self.info, headers, &mut self.scratch);
        headers.len()
    }
}
