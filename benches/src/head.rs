//! Heads: parsing a request and a reply, and writing them again.

use torus_codec::{
    BodyLength, ConnectionToken, EncodeOptions, Limits, RequestHead, RequestMethod, RequestOptions, ResponseHead,
    Version, encode_request_head, encode_response_head, parse_request, parse_response,
};

/// What `curl` and `wrk` send: a line and two fields or three.
pub const SMALL_REQUEST: &[u8] =
    b"GET /api/v1/items?page=2 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: curl/8.5.0\r\nAccept: */*\r\n\r\n";

/// What a browser sends: a dozen fields, a cookie among them.
pub const BROWSER_REQUEST: &[u8] = b"GET /products/4711/details?ref=home&lang=en HTTP/1.1\r\n\
Host: shop.example.com\r\n\
Connection: keep-alive\r\n\
sec-ch-ua: \"Chromium\";v=\"126\", \"Not.A/Brand\";v=\"24\"\r\n\
sec-ch-ua-mobile: ?0\r\n\
sec-ch-ua-platform: \"Linux\"\r\n\
Upgrade-Insecure-Requests: 1\r\n\
User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36\r\n\
Accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,*/*;q=0.8\r\n\
Sec-Fetch-Site: same-origin\r\n\
Sec-Fetch-Mode: navigate\r\n\
Referer: https://shop.example.com/products\r\n\
Accept-Encoding: gzip, deflate, br\r\n\
Accept-Language: en-GB,en;q=0.9,de;q=0.8\r\n\
Cookie: session=0123456789abcdef0123456789abcdef; basket=3; consent=yes\r\n\r\n";

/// What a server answers.
pub const REPLY: &[u8] = b"HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\n\
Content-Type: application/json; charset=utf-8\r\nContent-Length: 1024\r\nConnection: keep-alive\r\n\
ETag: \"5f3c-1a2b\"\r\nCache-Control: max-age=60\r\n\r\n";

/// Parses one request again and again into the same memory, as a connection does.
pub struct RequestParse {
    options: RequestOptions,
    head: RequestHead,
    input: &'static [u8],
}

impl RequestParse {
    /// For this request; its memory is warm.
    pub fn new(input: &'static [u8]) -> Self {
        let mut bench = Self { options: RequestOptions::default(), head: RequestHead::default(), input };
        bench.run();
        bench
    }

    /// Parses it once; how many bytes the head had.
    pub fn run(&mut self) -> usize {
        parse_request(self.input, &self.options, &mut self.head).ok().flatten().unwrap_or_default()
    }

    /// What was parsed.
    pub fn head(&self) -> &RequestHead {
        &self.head
    }

    /// What was parsed, to be changed.
    pub fn head_mut(&mut self) -> &mut RequestHead {
        &mut self.head
    }
}

/// Parses one reply again and again into the same memory.
pub struct ReplyParse {
    limits: Limits,
    head: ResponseHead,
}

impl ReplyParse {
    /// Its memory is warm.
    pub fn new() -> Self {
        let mut bench = Self { limits: Limits::default(), head: ResponseHead::default() };
        bench.run();
        bench
    }

    /// Parses it once; how many bytes the head had.
    pub fn run(&mut self) -> usize {
        parse_response(REPLY, RequestMethod::of(b"GET"), &self.limits, &mut self.head)
            .ok()
            .flatten()
            .unwrap_or_default()
    }

    /// What was parsed.
    pub fn head(&self) -> &ResponseHead {
        &self.head
    }
}

impl Default for ReplyParse {
    fn default() -> Self {
        Self::new()
    }
}

/// Writes parsed heads again.
pub struct Encode {
    request: RequestHead,
    reply: ResponseHead,
    out: Vec<u8>,
}

impl Encode {
    /// Of a browser's request and a server's reply; the memory is warm.
    pub fn new() -> Self {
        let request = RequestParse::new(BROWSER_REQUEST).head;
        let reply = ReplyParse::new().head;
        Self { request, reply, out: Vec::with_capacity(4096) }
    }

    /// Writes the request's head; how many bytes it has.
    pub fn run_request(&mut self) -> usize {
        self.out.clear();
        let (headers, options) = (&self.request.headers, EncodeOptions::default());
        let written = encode_request_head(headers, BodyLength::Empty, ConnectionToken::None, &options, &mut self.out);
        written.map_or(0, |_| self.out.len())
    }

    /// Writes the reply's head; how many bytes it has.
    pub fn run_reply(&mut self) -> usize {
        self.out.clear();
        let (headers, options) = (&self.reply.headers, EncodeOptions::default());
        let body = BodyLength::Length(1024);
        let written =
            encode_response_head(Version::Http11, headers, body, ConnectionToken::None, &options, &mut self.out);
        written.map_or(0, |_| self.out.len())
    }
}

impl Default for Encode {
    fn default() -> Self {
        Self::new()
    }
}
