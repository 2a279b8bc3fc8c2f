//! Where in a message something is: `static_resources.clusters[3].lb_policy`.

use std::fmt;

/// A path that grows and shrinks while a message is walked; nothing is formatted until it is shown.
#[derive(Clone, Debug, Default)]
pub struct Path<'a> {
    parts: Vec<Part<'a>>,
}

#[derive(Clone, Copy, Debug)]
enum Part<'a> {
    Field(&'static str),
    Index(usize),
    Key(&'a str),
}

impl<'a> Path<'a> {
    /// Enters a field.
    pub fn push_field(&mut self, name: &'static str) {
        self.parts.push(Part::Field(name));
    }

    /// Enters an element of a list.
    pub fn push_index(&mut self, index: usize) {
        self.parts.push(Part::Index(index));
    }

    /// Enters a value of a map or of a Struct.
    pub fn push_key(&mut self, key: &'a str) {
        self.parts.push(Part::Key(key));
    }

    /// Leaves what was entered last.
    pub fn pop(&mut self) {
        self.parts.pop();
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, part) in self.parts.iter().enumerate() {
            match part {
                Part::Field(name) if position == 0 => f.write_str(name)?,
                Part::Field(name) => write!(f, ".{name}")?,
                Part::Index(index) => write!(f, "[{index}]")?,
                Part::Key(key) => write!(f, "[\"{key}\"]")?,
            }
        }
        Ok(())
    }
}
