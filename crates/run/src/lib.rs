//! The world around the science: files, recipes' steps, folders that are saved, reports. Never maths.

pub mod inspect;
pub mod report;
pub mod save;
pub mod stock;
