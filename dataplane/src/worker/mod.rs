//! One core: owns every connection, pool, timer and buffer of that core.

pub mod random;
