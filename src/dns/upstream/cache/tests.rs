use hickory_proto::{
    op::{Message, MessageType, OpCode, Query, ResponseCode},
    rr::{
        Name, RData, Record, RecordType,
        rdata::{A, SOA, TXT},
    },
};

use super::{super::message::Asked, *};

const SECOND: Duration = Duration::from_secs(1);

fn key(name: &str) -> Key {
    asked(name).key
}

fn asked(name: &str) -> Asked {
    let mut query = Message::query();
    let name = Name::from_ascii(name).unwrap();
    query.add_query(Query::query(name, RecordType::A));
    Asked::read(&query.to_vec().unwrap()).unwrap()
}

/// With records of this time.
fn said(code: ResponseCode, ttl: u32, text: usize) -> Arc<Said> {
    let mut answer = Message::new(0, MessageType::Response, OpCode::Query);
    answer.metadata.response_code = code;
    let name = Name::from_ascii("x.").unwrap();
    answer.add_query(Query::query(name.clone(), RecordType::A));
    match code {
        ResponseCode::NXDomain => {
            let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, ttl);
            answer.add_authority(Record::from_rdata(name, ttl, RData::SOA(soa)));
        }
        ResponseCode::NoError => {
            let data = RData::A(A::new(192, 0, 2, 1));
            answer.add_answer(Record::from_rdata(name.clone(), ttl, data));
            let long = TXT::new(vec!["x".repeat(250); text / 250]);
            answer.add_additional(Record::from_rdata(name, ttl, RData::TXT(long)));
        }
        _ => {}
    }
    Arc::new(Said::read(&answer.to_vec().unwrap(), &asked("x.")).unwrap())
}

fn client(number: u32) -> IpAddr {
    std::net::Ipv4Addr::from(0x0a00_0000 + number).into()
}

/// Also that the sums are right.
fn names(cache: &Cache) -> usize {
    let cost: usize = cache.entries.values().map(|entry| entry.cost).sum();
    let charged: usize = cache.clients.values().map(|one| one.bytes).sum();
    let keys: usize = cache.clients.values().map(|one| one.keys.len()).sum();
    assert_eq!((cost, charged), (cache.bytes, cache.bytes));
    assert_eq!(keys, cache.entries.len());
    assert!(cache.entries.len() <= cache.limits.entries && cache.bytes <= cache.limits.bytes);
    cache.entries.len()
}

#[test]
fn answers_age_and_go() {
    use ResponseCode::{FormErr, NXDomain, NoError, ServFail};
    for (code, ttl, after, want) in [
        (NoError, 60, 0, Some(Age::Seconds(0))),
        (NoError, 60, 59, Some(Age::Seconds(59))),
        (NoError, 60, 60, None),
        (NoError, 0, 0, None),
        (NoError, 1 << 30, 3599, Some(Age::Seconds(3599))),
        (NoError, 1 << 30, 3600, None), // whatever its owner says
        (NXDomain, 30, 29, Some(Age::Seconds(29))),
        (NXDomain, 30, 30, None),
        (NXDomain, 86_400, 299, Some(Age::Seconds(299))),
        (NXDomain, 86_400, 300, None),
        (ServFail, 0, 0, Some(Age::Seconds(0))),
        (ServFail, 0, 1, None),
        (FormErr, 0, 0, None),
    ] {
        let (mut cache, begun) = (Cache::new(LIMITS), Instant::now());
        cache.put(&key("a."), &said(code, ttl, 0), client(1), begun);
        names(&cache);
        let hit = cache.get(&key("A."), begun + SECOND * after);
        let about = format!("{code} {ttl} {after}");
        assert_eq!(hit.map(|hit| hit.age), want, "{about}");
        assert!(cache.get(&key("b."), begun).is_none(), "{about}");
    }
}

#[test]
fn old_answers_are_for_when_there_is_no_other() {
    let (mut cache, begun) = (Cache::new(LIMITS), Instant::now());
    let at = |seconds: u32| begun + SECOND * seconds;
    let failure = || said(ResponseCode::ServFail, 0, 0);
    let a = key("a.");
    let age = |cache: &mut Cache, seconds| cache.get(&a, at(seconds)).map(|hit| hit.age);
    cache.put(&a, &said(ResponseCode::NoError, 10, 0), client(1), at(0));
    assert_eq!(age(&mut cache, 10), None);
    assert!(cache.has_stale(&a, at(10)));
    cache.put(&a, &failure(), client(1), at(12));
    assert_eq!(age(&mut cache, 12), Some(Age::Stale));
    assert_eq!(age(&mut cache, 16), Some(Age::Stale));
    assert_eq!(age(&mut cache, 17), None); // asked again
    cache.put(&a, &failure(), client(1), at(3609));
    assert_eq!(age(&mut cache, 3609), Some(Age::Stale));
    assert_eq!(age(&mut cache, 3610), None);
    assert!(!cache.has_stale(&a, at(3610)));
    // A failure is none, and a new answer ends it.
    cache.put(&a, &failure(), client(1), at(3610));
    assert!(!cache.has_stale(&a, at(3610)));
    cache.put(&a, &said(ResponseCode::NoError, 10, 0), client(1), at(3611));
    assert_eq!(age(&mut cache, 3612), Some(Age::Seconds(1)));
    // As does one that may not be kept.
    cache.put(&a, &said(ResponseCode::NoError, 0, 0), client(1), at(3613));
    assert_eq!(age(&mut cache, 3613), None);
    assert_eq!(names(&cache), 0);
}

#[test]
fn who_asks_for_ever_new_names_pushes_out_its_own() {
    let limits = Limits {
        entries: 100,
        ..LIMITS
    };
    let (mut cache, begun) = (Cache::new(limits), Instant::now());
    let answer = said(ResponseCode::NoError, 60, 0);
    let flood = client(1);
    for number in 0..1000 {
        cache.put(&key(&format!("flood{number}.")), &answer, flood, begun);
    }
    assert_eq!(names(&cache), 100);
    for neighbour in 2..10 {
        for number in 0..5 {
            let name = format!("n{number}.c{neighbour}.");
            cache.put(&key(&name), &answer, client(neighbour), begun);
        }
    }
    // What others use stays, though the flood has asked for it first.
    cache.put(&key("used."), &answer, flood, begun);
    for number in 1000..2000 {
        cache.put(&key(&format!("flood{number}.")), &answer, flood, begun);
        assert!(cache.get(&key("used."), begun).is_some(), "{number}");
    }
    assert_eq!(names(&cache), 100);
    for neighbour in 2..10 {
        for number in 0..5 {
            let name = format!("n{number}.c{neighbour}.");
            assert!(cache.get(&key(&name), begun).is_some(), "{name}");
        }
    }
    assert!(cache.get(&key("flood1999."), begun).is_some());
    assert!(cache.get(&key("flood1000."), begun).is_none());
}

#[test]
fn memory_is_bounded() {
    let (mut cache, begun) = (Cache::new(LIMITS), Instant::now());
    for number in 0..20_000u32 {
        let answer = said(ResponseCode::NoError, 60, (number as usize % 20) * 1000);
        cache.put(&key(&format!("n{number}.")), &answer, client(number), begun);
    }
    assert!(names(&cache) > 100);
    let long = said(ResponseCode::NoError, 60, LIMITS.one + 1000);
    cache.put(&key("long."), &long, client(1), begun);
    assert!(cache.get(&key("long."), begun).is_none());
    // Where everything is used all the time, something goes all the same.
    for number in 0..20_000 {
        cache.get(&key(&format!("n{number}.")), begun);
    }
    let answer = said(ResponseCode::NoError, 60, 15_000);
    cache.put(&key("one-more."), &answer, client(1), begun);
    assert!(cache.get(&key("one-more."), begun).is_some());
    names(&cache);
    // What nobody can use any more goes by itself.
    let answer = said(ResponseCode::NoError, 60, 0);
    let later = begun + STALE + SECOND * 61;
    cache.put(&key("later."), &answer, client(1), later);
    assert_eq!(names(&cache), 1);
}

#[test]
fn other_servers_say_other_things() {
    let (mut cache, now) = (Cache::new(LIMITS), Instant::now());
    let answer = said(ResponseCode::NoError, 60, 0);
    cache.of(1).put(&key("a."), &answer, client(1), now);
    assert!(cache.of(1).get(&key("a."), now).is_some());
    assert!(cache.of(2).get(&key("a."), now).is_none());
    assert!(cache.of(1).get(&key("a."), now).is_none());
}
