//! Findings for people and programs: a table, one JSON document, one HTML page.

pub mod html;
pub mod json;
pub mod text;
