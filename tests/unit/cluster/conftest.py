"""A conversation with the API server's stand-in."""

import pytest

from kata.cluster import api, credentials
from tests import api_server


@pytest.fixture
def stand_in():
    with api_server.ApiServer() as running:
        yield running


@pytest.fixture
def server(stand_in):
    given = api.Server(credentials.Access(stand_in.url, stand_in.token, stand_in.ca))
    yield given
    given.close()
