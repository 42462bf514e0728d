//! The catalog: a logical file is one thing, wherever it is.

use super::kit::{Kit, lfn, named, record};
use crate::control::model::catalog::{FileFilter, MAX_RECORDS, Record};
use crate::control::model::page::PageQuery;
use crate::control::store::StoreError;

fn of(n: usize, agent: &str, block: &str) -> Record {
    let dataset = block.split('#').next().unwrap();
    Record { dataset: Some(named(dataset)), block: Some(named(block)), ..record(n, agent) }
}

fn page(limit: usize, cursor: Option<String>) -> PageQuery {
    PageQuery { cursor, limit: Some(limit) }
}

/// Another size, digest or block under the same name is refused, and the whole batch with it.
pub async fn a_logical_file_does_not_change(kit: &Kit) {
    let digest = Some("ab".repeat(16));
    kit.store.add_records(vec![Record { digest: digest.clone(), ..of(0, "a", "/x/y#1") }]).await.unwrap();
    kit.store.add_records(vec![record(0, "b")]).await.unwrap();
    let wrong = [
        Record { bytes: 11, ..record(0, "c") },
        Record { digest: Some("cd".repeat(16)), ..record(0, "c") },
        of(0, "c", "/x/y#2"),
        Record { dataset: Some(named("/z")), block: Some(named("/x/y#1")), ..record(5, "c") },
        Record { dataset: Some(named("/z")), ..record(5, "c") },
    ];
    for bad in wrong {
        let result = kit.store.add_records(vec![record(1, "c"), bad.clone()]).await;
        assert!(matches!(result, Err(StoreError::Conflict(_))), "{bad:?}: {result:?}");
    }
    assert!(matches!(kit.store.file(lfn(1)).await, Err(StoreError::NotFound(_))), "none of a refused batch");
    let file = kit.store.file(lfn(0)).await.unwrap();
    assert_eq!((file.digest, file.block), (digest, Some(named("/x/y#1"))));
    assert_eq!(file.replicas.iter().map(|r| r.agent.to_string()).collect::<Vec<_>>(), ["a", "b"]);
    let many = (0..=MAX_RECORDS).map(|n| record(n, "a")).collect();
    assert!(matches!(kit.store.add_records(many).await, Err(StoreError::TooMuch(_))));
}

/// Sums count a file once, however often it is added; a file without replicas stays known.
pub async fn sums_count_files_once(kit: &Kit) {
    kit.store.add_records((0..4).map(|n| of(n, "a", "/x/y#1")).collect()).await.unwrap();
    kit.store.add_records((0..4).map(|n| of(n, "b", "/x/y#1")).collect()).await.unwrap();
    kit.store.add_records(vec![record(9, "a")]).await.unwrap();
    kit.store.add_records(vec![of(9, "a", "/x/y#2"), of(10, "a", "/x-z#1")]).await.unwrap();
    let all = kit.store.datasets(None, page(10, None)).await.unwrap().items;
    let names: Vec<_> = all.iter().map(|g| (g.name.as_str(), g.blocks, g.files, g.bytes)).collect();
    assert_eq!(names, [("/x-z", Some(1), 1, 10), ("/x/y", Some(2), 5, 50)]);
    let below = kit.store.datasets(Some(named("/x")), page(10, None)).await.unwrap().items;
    assert_eq!(below.iter().map(|g| g.name.as_str()).collect::<Vec<_>>(), ["/x/y"], "by components");
    let itself = kit.store.datasets(Some(named("/x/y")), page(10, None)).await.unwrap().items;
    assert_eq!(itself.len(), 1);
    let blocks = kit.store.blocks(named("/x/y"), page(1, None)).await.unwrap();
    assert_eq!((blocks.items[0].name.as_str(), blocks.items[0].files), ("/x/y#1", 4));
    let rest = kit.store.blocks(named("/x/y"), page(1, blocks.next)).await.unwrap();
    assert_eq!((rest.items[0].name.as_str(), rest.next), ("/x/y#2", None));
    assert!(matches!(kit.store.blocks(named("/none"), page(1, None)).await, Err(StoreError::NotFound(_))));
    assert_eq!(kit.store.remove_records(named("a"), vec![lfn(0), lfn(1), lfn(77)]).await.unwrap(), 2);
    assert_eq!(kit.store.remove_records(named("b"), vec![lfn(0)]).await.unwrap(), 1);
    assert!(kit.store.file(lfn(0)).await.unwrap().replicas.is_empty());
    assert_eq!(kit.store.datasets(None, page(10, None)).await.unwrap().items[1].files, 5);
}

/// Every filter, in pages that follow each other without a gap.
pub async fn files_are_filtered_and_paged(kit: &Kit) {
    kit.store.add_records((0..30).map(|n| of(n, "a", "/x/y#1")).collect()).await.unwrap();
    kit.store.add_records((30..60).map(|n| of(n, "b", "/x/y#2")).collect()).await.unwrap();
    let odd = ["/d0", "/d/", "/d-1/x", "/d/sub/x", "/dx"].into_iter().filter_map(|name| name.parse().ok());
    let odd: Vec<Record> = odd.map(|lfn| Record { lfn, ..record(0, "c") }).collect();
    kit.store.add_records(odd).await.unwrap();
    let count = |filter: FileFilter| async move {
        let (mut names, mut cursor) = (Vec::new(), None);
        for _ in 0..100 {
            let found = kit.store.files(filter.clone(), page(7, cursor)).await.unwrap();
            names.extend(found.items.into_iter().map(|file| file.lfn));
            cursor = found.next;
            if cursor.is_none() {
                break;
            }
        }
        assert!(names.is_sorted() && cursor.is_none());
        names.len()
    };
    let none = FileFilter::default;
    assert_eq!(count(none()).await, 64);
    assert_eq!(count(FileFilter { dataset: Some(named("/x/y")), ..none() }).await, 60);
    assert_eq!(count(FileFilter { block: Some(named("/x/y#2")), ..none() }).await, 30);
    assert_eq!(count(FileFilter { agent: Some(named("b")), ..none() }).await, 30);
    assert_eq!(count(FileFilter { agent: Some(named("a")), block: Some(named("/x/y#2")), ..none() }).await, 0);
    assert_eq!(count(FileFilter { prefix: Some(named("/d")), ..none() }).await, 61, "by components");
    assert_eq!(count(FileFilter { prefix: Some(named("/d/sub")), agent: Some(named("c")), ..none() }).await, 1);
}
