//! The tables and lines that show probe results.

use crate::table::{Align, Cell, Table};
use sdclr_records::ProbeResult;
use sdclr_records::results::Group;

/// One row: a model and what its probes measured.
#[derive(Debug, Clone, Copy)]
pub struct ResultRow<'a> {
    /// What the row is called.
    pub name: &'a str,
    /// The linear (or few-shot) probe: All and the groups come from it.
    pub linear: Option<&'a ProbeResult>,
    /// The nearest-neighbour vote.
    pub knn: Option<&'a ProbeResult>,
}

/// All, Many, Medium, Few, Std and kNN (its All) in percent, a row a model.
pub fn results_table(rows: &[ResultRow<'_>]) -> Table {
    let right = ["All", "Many", "Medium", "Few", "Std", "kNN"].map(|title| (title, Align::Right));
    let columns: Vec<(&str, Align)> = std::iter::once(("", Align::Left)).chain(right).collect();
    let mut table = Table::new(&columns);
    for row in rows {
        let groups = row.linear.and_then(|result| result.groups.as_ref());
        table.push(vec![
            row.name.into(),
            Cell::percent(row.linear.map(|result| result.all)),
            Cell::percent(groups.and_then(|g| g.many)),
            Cell::percent(groups.and_then(|g| g.medium)),
            Cell::percent(groups.and_then(|g| g.few)),
            Cell::percent(groups.and_then(|g| g.std)),
            Cell::percent(row.knn.map(|result| result.all)),
        ]);
    }
    table
}

/// One result of whatever probe: All, the groups, Std, top-1 and, where it was measured, top-5 in percent.
pub fn result_table(name: &str, result: &ProbeResult) -> Table {
    let right = ["All", "Many", "Medium", "Few", "Std", "Top-1"].map(|title| (title, Align::Right));
    let top5 = result.top5.map(|_| ("Top-5", Align::Right));
    let columns: Vec<(&str, Align)> = std::iter::once(("", Align::Left)).chain(right).chain(top5).collect();
    let groups = result.groups.as_ref();
    let mut table = Table::new(&columns);
    let mut cells = vec![
        name.into(),
        Cell::Percent(result.all),
        Cell::percent(groups.and_then(|g| g.many)),
        Cell::percent(groups.and_then(|g| g.medium)),
        Cell::percent(groups.and_then(|g| g.few)),
        Cell::percent(groups.and_then(|g| g.std)),
        Cell::Percent(result.top1),
    ];
    cells.extend(result.top5.map(Cell::Percent));
    table.push(cells);
    table
}

/// The long tail in one line, largest class first: `Many: Bag 600, Coat 360 | Medium: … | Few: …`.
///
/// `class_names` may be empty; labels then stand for names. All lengths are the number of classes.
pub fn tail_line(class_counts: &[usize], class_groups: &[Group], class_names: &[String]) -> String {
    let mut order: Vec<usize> = (0..class_counts.len()).collect();
    order.sort_by_key(|&class_idx| std::cmp::Reverse(class_counts[class_idx]));
    let name = |class_idx: usize| class_names.get(class_idx).cloned().unwrap_or_else(|| class_idx.to_string());
    let parts = [(Group::Many, "Many"), (Group::Medium, "Medium"), (Group::Few, "Few")].map(|(group, title)| {
        let members = order.iter().filter(|&&class_idx| class_groups.get(class_idx) == Some(&group));
        let counts: Vec<String> = members.map(|&c| format!("{} {}", name(c), class_counts[c])).collect();
        (!counts.is_empty()).then(|| format!("{title}: {}", counts.join(", ")))
    });
    parts.into_iter().flatten().collect::<Vec<_>>().join(" | ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use sdclr_records::names::Protocol;
    use sdclr_records::results::GroupAccuracy;

    #[test]
    fn a_row_shows_what_was_measured_and_a_dash_for_the_rest() {
        let linear = ProbeResult {
            version: 1,
            protocol: Protocol::LinearCached,
            subject: "SDCLR".to_owned(),
            top1: 71.0,
            top5: None,
            class_accuracy: vec![Some(80.0), Some(70.0), Some(60.0)],
            groups: Some(GroupAccuracy {
                many: Some(80.0),
                medium: Some(70.0),
                few: Some(60.0),
                std: Some(8.165),
                class_counts: vec![9, 5, 1],
                class_groups: vec![Group::Many, Group::Medium, Group::Few],
            }),
            all: 70.0,
            class_std: 8.165,
            class_names: Vec::new(),
            n_train: 3,
            n_test: 3,
            n_skipped: 0,
            weights: None,
            data: Default::default(),
            best_epoch: None,
            settings: Default::default(),
        };
        let table = results_table(&[
            ResultRow { name: "SDCLR", linear: Some(&linear), knn: None },
            ResultRow { name: "raw pixels", linear: None, knn: Some(&linear) },
        ]);
        let expected = ",All,Many,Medium,Few,Std,kNN\nSDCLR,70,80,70,60,8.165,\nraw pixels,,,,,,70\n";
        assert_eq!(table.to_csv(), expected);
        let alone = result_table("knn", &linear).to_csv();
        assert_eq!(alone, ",All,Many,Medium,Few,Std,Top-1\nknn,70,80,70,60,8.165,71\n");
        let with_top5 = result_table("linear", &ProbeResult { top5: Some(90.5), ..linear }).to_csv();
        assert_eq!(with_top5, ",All,Many,Medium,Few,Std,Top-1,Top-5\nlinear,70,80,70,60,8.165,71,90.5\n");
    }

    #[test]
    fn the_tail_is_listed_from_its_head() {
        let names = ["Bag", "Coat", "Shirt"].map(str::to_owned);
        let groups = [Group::Few, Group::Many, Group::Medium];
        assert_eq!(tail_line(&[6, 600, 60], &groups, &names), "Many: Coat 600 | Medium: Shirt 60 | Few: Bag 6");
        assert_eq!(tail_line(&[6, 600], &[Group::Many; 2], &[]), "Many: 1 600, 0 6");
    }
}
