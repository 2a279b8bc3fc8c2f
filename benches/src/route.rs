//! Which route takes a request: by domain among many virtual hosts, by path among many routes.

use envoy_types::pb::envoy::config::route::v3::{
    NonForwardingAction, Route, RouteConfiguration, RouteMatch, VirtualHost, route, route_match::PathSpecifier,
};
use torus_codec::headers::{HeaderMap, Known};
use torus_proxy::config::parse::context::ParseContext;
use torus_proxy::route::Found;
use torus_proxy::route::scratch::Scratch;
use torus_proxy::route::table::RouteTable;

/// A table, and the request that looks for its last entry but a few.
pub struct Lookup {
    table: RouteTable,
    request: HeaderMap,
    scratch: Scratch,
}

impl Lookup {
    /// A table of `count` virtual hosts with a domain and a route each.
    pub fn among_virtual_hosts(count: usize) -> Self {
        let virtual_hosts = (0..count).map(|number| VirtualHost {
            name: format!("host-{number}"),
            domains: vec![format!("host-{number}.example.com")],
            routes: vec![route(PathSpecifier::Prefix("/".to_owned()))],
            ..VirtualHost::default()
        });
        Self::new(virtual_hosts.collect(), &format!("host-{}.example.com", count * 3 / 4), "/items/1")
    }

    /// A table of one virtual host with `count` routes, of which the first that matches stands at three quarters.
    pub fn among_routes(count: usize) -> Self {
        let routes = (0..count).map(|number| route(PathSpecifier::Prefix(format!("/service-{number}/"))));
        let host = VirtualHost {
            name: "all".to_owned(),
            domains: vec!["*".to_owned()],
            routes: routes.collect(),
            ..VirtualHost::default()
        };
        Self::new(vec![host], "shop.example.com", &format!("/service-{}/items/1", count * 3 / 4))
    }

    fn new(virtual_hosts: Vec<VirtualHost>, host: &str, path: &str) -> Self {
        let config = RouteConfiguration { name: "bench".to_owned(), virtual_hosts, ..RouteConfiguration::default() };
        let table = RouteTable::parse(&config, &mut ParseContext::new(1)).unwrap_or_default();
        let mut request = HeaderMap::default();
        request.append_known(Known::Method, b"GET");
        request.append_known(Known::Authority, host.as_bytes());
        request.append_known(Known::Path, path.as_bytes());
        request.append_known(Known::XForwardedProto, b"http");
        let mut lookup = Self { table, request, scratch: Scratch::default() };
        lookup.run();
        lookup
    }

    /// Looks once; the length of the virtual host's name, or zero where no route was found.
    pub fn run(&mut self) -> usize {
        match self.table.find(&self.request, 0, &mut self.scratch) {
            Found::Route(found) => found.virtual_host.name.len(),
            _ => 0,
        }
    }
}

fn route(path: PathSpecifier) -> Route {
    Route {
        r#match: Some(RouteMatch { path_specifier: Some(path), ..RouteMatch::default() }),
        action: Some(route::Action::NonForwardingAction(NonForwardingAction {})),
        ..Route::default()
    }
}
