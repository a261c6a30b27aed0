use super::*;
use sdclr_records::results::{GroupAccuracy, RESULT_VERSION};

/// A result with these class accuracies; one class a group where there are three.
fn result(protocol: Protocol, class_accuracy: &[f64], n_test: usize) -> ProbeResult {
    let values = class_accuracy.to_vec();
    let over = spread(&values);
    let groups = (values.len() == 3).then(|| GroupAccuracy {
        many: Some(values[0]),
        medium: Some(values[1]),
        few: Some(values[2]),
        std: Some(over.std),
        class_counts: vec![100, 10, 1],
        class_groups: vec![Group::Many, Group::Medium, Group::Few],
    });
    ProbeResult {
        version: RESULT_VERSION,
        protocol,
        subject: "SDCLR".to_owned(),
        weights: None,
        top1: over.mean,
        top5: None,
        class_accuracy: values.into_iter().map(Some).collect(),
        groups,
        all: over.mean,
        class_std: over.std,
        class_names: Vec::new(),
        n_train: 1,
        n_test,
        n_skipped: 0,
        best_epoch: None,
        settings: Default::default(),
        data: Default::default(),
    }
}

fn measured<'a>(arm: &'a str, split: usize, result: &'a ProbeResult) -> Measured<'a> {
    Measured { arm, title: arm, split, result }
}

#[test]
fn two_splits_give_the_numbers_computed_by_hand() {
    // Split 1: 90, 60, 30: mean 60, deviations 30, 0, −30, population std √600 = 24.4949.
    // Split 2: 96, 72, 48: mean 72, std √384 = 19.5959.
    let results = [[90.0, 60.0, 30.0], [96.0, 72.0, 48.0]].map(|c| result(Protocol::LinearPaper, &c, 300));
    let rows = summarise(&[measured("sdclr", 1, &results[0]), measured("sdclr", 2, &results[1])], None);
    assert_eq!(rows.len(), 1);
    let row = &rows[0];
    let near = |spread: Spread, mean: f64, std: f64| {
        assert!((spread.mean - mean).abs() < 1e-4 && (spread.std - std).abs() < 1e-4, "{spread:?}");
    };
    near(row.all, 66.0, 6.0);
    near(row.many.unwrap(), 93.0, 3.0);
    near(row.medium.unwrap(), 66.0, 6.0);
    near(row.few.unwrap(), 39.0, 9.0);
    // (24.4949 + 19.5959) / 2 and half their distance: the std is computed per split, then averaged.
    near(row.group_std.unwrap(), 22.0454, 2.4495);
    near(row.class_std, 22.0454, 2.4495);
    near(row.worst_class, 39.0, 9.0);
    // t(1 degree of freedom) = 12.706, sample std of 60 and 72 = 8.48528, over √2: 6 · 12.706.
    assert!((row.all_ci95.unwrap() - 76.236).abs() < 1e-3, "{:?}", row.all_ci95);
    assert_eq!((row.splits.as_slice(), &row.comparison), (&[1, 2][..], &None));
}

#[test]
fn one_split_has_the_test_images_interval_and_no_verdict() {
    // Two classes of 100 images at 80 and 50 %: variance (0.16 + 0.25)/100/4 = 0.001025, 1.96 · √ = 6.2751 points.
    let one = result(Protocol::FewShot, &[80.0, 50.0], 200);
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let rows = summarise(&[measured("sdclr", 1, &one)], Some(&experiment));
    assert!((rows[0].all_ci95.unwrap() - 6.2751).abs() < 1e-3, "{:?}", rows[0].all_ci95);
    assert_eq!((rows[0].many, rows[0].group_std), (None, None));
    let comparison = rows[0].comparison.as_ref().unwrap();
    assert_eq!(comparison.verdict, Verdict::OneSplit);
    assert!((comparison.difference - (65.0 - 70.47)).abs() < 1e-9);
}

#[test]
fn a_published_mean_is_judged_by_our_own_spread() {
    let experiment = Experiment::named("cifar10-lt").unwrap();
    // Published 82.00, a mean over 5 splits. Ours: 5 splits with sample std s, t(4) = 2.776: the limit is 2.776·s·√(2/5).
    let check = |shift: f64, expected: Verdict| {
        let results: Vec<ProbeResult> = [-2.0, -1.0, 0.0, 1.0, 2.0]
            .iter()
            .map(|d| result(Protocol::LinearPaper, &[82.0 + shift + d, 82.0 + shift + d], 200))
            .collect();
        let all: Vec<Measured<'_>> = (1..).zip(&results).map(|(i, one)| measured("sdclr", i, one)).collect();
        let comparison = summarise(&all, Some(&experiment))[0].comparison.clone().unwrap();
        assert_eq!(comparison.verdict, expected, "{shift}");
        assert!((comparison.difference - shift).abs() < 1e-9);
    };
    // s = √2.5 = 1.5811, so the limit is 2.776 · 1.5811 · 0.63246 = 2.7759.
    for (shift, expected) in
        [(2.77, Verdict::Agrees), (2.78, Verdict::Above), (-2.77, Verdict::Agrees), (-2.78, Verdict::Below)]
    {
        check(shift, expected);
    }
}

#[test]
fn tables_have_a_row_an_arm_and_mark_what_is_recalled() {
    let experiment = Experiment::named("cifar10-lt").unwrap();
    let (linear, few) =
        (result(Protocol::LinearPaper, &[90.0, 60.0, 30.0], 30), result(Protocol::FewShot, &[70.0, 50.0, 30.0], 30));
    let all = [measured("simclr", 1, &linear), measured("simclr", 1, &few), measured("sdclr", 1, &linear)];
    let tables = summary_tables(&summarise(&all, Some(&experiment)));
    assert_eq!(tables.len(), 2);
    let text = tables[0].1.to_text();
    assert_eq!(text.lines().count(), 4, "{text}");
    assert!(
        text.contains("75.55 recalled") && text.contains("-15.55") && text.contains("one split, no verdict"),
        "{text}"
    );
    assert!(tables[0].0.contains("Linear") && tables[1].0.contains("Few-shot"));
    let csv = summary_csv(&summarise(&all, Some(&experiment)));
    assert!(csv.starts_with("arm,protocol,n_splits,all,all_over_splits,many,"), "{csv}");
    assert!(csv.contains("\nsimclr,linear-paper,1,60,0,90,0,60,0,30,0,"), "{csv}");
    let published = published_tables(&experiment);
    assert_eq!(published.len(), 2);
    let published = published[0].1.to_text();
    assert!(published.contains("86.44  ") && published.contains("82.00 recalled"), "{published}");
    assert!(published_tables(&Experiment::named("fashion-mnist-lt").unwrap()).is_empty());
}
