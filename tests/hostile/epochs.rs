//! A destination that was stopped while another took its storage over, and wakes up.

use crate::peer::{Session, destination, read_ticket};
use crate::stage::Stage;
use longhaul::ids::{Epoch, TransferId};
use longhaul::wire::control::Message;

fn under(stage: &Stage, epoch: Epoch, transfer: u8) -> Session {
    destination(&read_ticket(&stage.agent, "/src"), 1, |accept| {
        (accept.epoch, accept.transfer) = (epoch, TransferId([transfer; 16]));
    })
}

/// What a session is answered with, behind the beginning of a manifest that comes with every offer: `None` if it is let in, else
/// class and sentence.
fn refusal(session: &mut Session) -> Option<(String, String)> {
    session.control.say(&Message::StatsRequest);
    loop {
        match session.control.hear().expect("an answer") {
            Message::Stats(_) => return None,
            Message::Error(error) => return Some((error.class, error.what)),
            _ => {}
        }
    }
}

#[test]
fn a_lower_epoch_is_refused_and_a_higher_one_takes_over() {
    let mut stage = Stage::new();
    let mut first = under(&stage, Epoch(5), 6);
    assert_eq!(refusal(&mut first), None);
    let mut refused = 0;
    for lower in [1, 4] {
        let (class, what) = refusal(&mut under(&stage, Epoch(lower), 6)).expect("a refusal");
        assert_eq!(class, "permanent");
        assert!(what.contains("out of date") && what.contains("epoch 5"), "{what}");
        refused += 1;
    }
    assert_eq!(refusal(&mut first), None, "who is in is not touched by that");
    // The same epoch, another transfer, another journal of the same paths (at another host), and a dry run.
    let other = Epoch::before_first(1).next();
    for (epoch, transfer) in [(Epoch(5), 6), (Epoch(1), 7), (other, 6), (Epoch(0), 6), (Epoch(5), 6)] {
        assert_eq!(refusal(&mut under(&stage, epoch, transfer)), None, "{epoch:?} of {transfer}");
    }
    assert_eq!(refusal(&mut under(&stage, Epoch(6), 6)), None);
    let (class, what) = refusal(&mut first).expect("an end");
    assert!(class == "permanent" && what.contains("epoch 6"), "{class}: {what}");
    assert!(refusal(&mut under(&stage, Epoch(5), 6)).is_some());
    println!("COUNT epochs_refused={} epochs_put_out=1", refused + 1);
    stage.unharmed("epochs");
}
