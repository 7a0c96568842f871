"""Tests of server/routes.py beside those of the application: who counts as one visitor."""

import pytest

from server.routes import visitor_of

pytestmark = pytest.mark.unit


def test_a_visitor_is_an_address_and_in_ipv6_a_network() -> None:
    assert visitor_of("192.0.2.7") == visitor_of("::ffff:192.0.2.7") == "192.0.2.7"
    assert visitor_of("192.0.2.8") != visitor_of("192.0.2.7")
    assert visitor_of("2001:db8:1:2::7") == visitor_of("2001:db8:1:2:ffff::1")
    assert visitor_of("2001:db8:1:3::7") != visitor_of("2001:db8:1:2::7")
    assert visitor_of("fe80::1%eth0") == visitor_of("fe80::2%eth0")
    assert visitor_of("a socket in the file system") == "a socket in the file system"
