//! Tables for people and programs, made from run records alone.

pub mod results;
pub mod summary;
pub mod table;

pub use results::{ResultRow, result_table, results_table, tail_line};
pub use summary::{Measured, SummaryRow, published_tables, summarise, summary_csv, summary_tables};
pub use table::{Align, Cell, Table};
