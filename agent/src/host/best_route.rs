//! The choice among routes that the kernel makes, for routes of which it is not asked. Pure.

use ipip_netlink::Route;
use std::{cmp::Reverse, net::Ipv4Addr};

/// Interface and gateway of the route that the kernel would choose out of these.
pub fn best_route(routes: &[Route], destination: Ipv4Addr) -> Option<(u32, Option<Ipv4Addr>)> {
    let mut best: Option<&Route> = None;
    for route in routes
        .iter()
        .filter(|it| it.destination.contains(destination))
    {
        let rank = |it: &Route| (it.destination.prefix(), Reverse(it.metric.unwrap_or(0)));
        // Of equal ones the first counts.
        if best.is_none_or(|best| rank(route) > rank(best)) {
            best = Some(route);
        }
    }
    Some((best?.oif?, best?.gateway))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_best_route_is_the_longest_then_that_of_the_lowest_metric_then_the_first() {
        let route = |destination: &str, gateway, oif, metric| Route {
            metric,
            ..Route::through(
                destination.parse().unwrap(),
                Ipv4Addr::new(10, 0, 0, gateway),
                oif,
            )
        };
        let routes = [
            route("0.0.0.0/0", 1, 2, Some(200)),
            route("0.0.0.0/0", 2, 3, Some(100)),
            route("0.0.0.0/0", 3, 4, Some(100)),
            route("10.1.0.0/16", 4, 5, Some(900)),
            route("10.2.0.0/16", 5, 6, None),
        ];
        let found = |destination: &str| best_route(&routes, destination.parse().unwrap());
        let gateway = |n| Some(Ipv4Addr::new(10, 0, 0, n));
        assert_eq!(found("10.1.2.3"), Some((5, gateway(4))));
        assert_eq!(found("192.0.2.1"), Some((3, gateway(2))));
        assert_eq!(best_route(&routes[3..], Ipv4Addr::new(192, 0, 2, 1)), None);
    }
}
