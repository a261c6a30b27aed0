//! Tables for people and programs, made from run records alone.

pub mod results;
pub mod table;

pub use results::{ResultRow, result_table, results_table, tail_line};
pub use table::{Align, Cell, Table};
