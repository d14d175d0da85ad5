"""Each hook that pytest-hfbudget has, put to use."""

import pytest


class Record:
    """Keeps what the hooks were told; a real one would write to a database, or to a chat."""

    def __init__(self):
        self.charged = {}  # nano-USD by model
        self.refused = []
        self.endpoints = []

    def pytest_hfbudget_charge(self, charge):
        if charge.nano_usd is not None:
            self.charged[charge.model] = self.charged.get(charge.model, 0) + charge.nano_usd

    def pytest_hfbudget_refusal(self, refusal):
        self.refused.append((refusal.test, refusal.scope))

    def pytest_hfbudget_endpoint(self, event):
        self.endpoints.append(f"{event.name}: {event.what}")


def pytest_hfbudget_price(request):
    if request.model == "acme/embeddings":
        return {"call": 0.0001}  # USD for each call
    return None  # the next source is asked


# In the conftest.py of the root directory this would go into pytest_configure; one further down
# is only read when its directory is collected.
RECORD = Record()


def pytest_collection_modifyitems(config):
    if not config.pluginmanager.has_plugin("spending-record"):
        config.pluginmanager.register(RECORD, "spending-record")


@pytest.fixture
def record():
    return RECORD
