"""ModelPool on a real API server: every field and rule, what is just taken, what is just refused and in which words.

The table stands in `tandem_testing.crd_pool`; a field, bound or rule that it does not speak of fails a test.
"""

from collections.abc import Iterator

import pytest

from tandem_devcluster.cluster import Cluster
from tandem_testing.crd_pool import POOL
from tandem_testing.kube import Kube

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def kube(control_plane: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Kube]:
    made = Kube(control_plane, tmp_path_factory.mktemp("kube"))
    made.install_crd()
    yield made
    made.close()


def test_the_table_leaves_nothing_out() -> None:
    assert POOL.omissions() == {}


@pytest.mark.parametrize("name", POOL.valid)
def test_what_is_valid_is_taken_and_kept(kube: Kube, name: str) -> None:
    POOL.check_valid(kube, POOL.valid[name])


@pytest.mark.parametrize("path", POOL.fields)
def test_values_of_a_field(kube: Kube, path: str) -> None:
    POOL.check_values(kube, path)


@pytest.mark.parametrize("path", POOL.schema)
def test_values_of_another_type(kube: Kube, path: str) -> None:
    POOL.check_type(kube, path)


@pytest.mark.parametrize("name", POOL.rules)
def test_rules_between_fields(kube: Kube, name: str) -> None:
    POOL.check_rule(kube, name)


@pytest.mark.parametrize("path", POOL.missing)
def test_required_fields(kube: Kube, path: str) -> None:
    spec, told = POOL.missing[path]
    assert POOL.refusals(kube, POOL.object(spec)) == [told]
    assert not POOL.accepts(spec)


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("a" * 40, None),
        ("0-a", None),
        ("a" * 41, "a ModelPool's name has at most 40 characters, so that the names of its objects fit"),
        ("a.b", "a ModelPool's name has lower-case letters, digits and '-' only, with a letter or digit at both ends"),
    ],
)
def test_names(kube: Kube, name: str, told: str | None) -> None:
    expected = [] if told is None else [f'metadata: Invalid value: "object": {told}']
    assert POOL.refusals(kube, POOL.object(POOL.least, name)) == expected


def test_a_spec_is_required(kube: Kube) -> None:
    bare = POOL.object({})
    del bare["spec"]
    assert POOL.refusals(kube, bare) == ["spec: Required value"]
