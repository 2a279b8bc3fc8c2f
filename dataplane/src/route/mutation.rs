//! `*_headers_to_add` and `*_headers_to_remove`, compiled.
