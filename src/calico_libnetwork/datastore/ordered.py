"""Key-values by key and by prefix, in key order: the in-memory form that the stores and the cache share."""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterable

from calico_libnetwork.datastore.protocol import KeyValue


class OrderedItems:
    """A key costs O(1); a prefix costs O(log n) and its own items.

    Strings sort by code point, which is the order of their UTF-8 bytes and so etcd's.
    """

    def __init__(self, items: Iterable[KeyValue] = ()) -> None:
        self._items = {item.key: item for item in items}
        self._keys = sorted(self._items)
        self.get = self._items.get  # itself: this is what is asked most often

    def __len__(self) -> int:
        return len(self._keys)

    def put(self, item: KeyValue) -> None:
        if item.key not in self._items:
            insort(self._keys, item.key)
        self._items[item.key] = item

    def remove(self, key: str) -> None:
        if self._items.pop(key, None) is not None:
            del self._keys[bisect_left(self._keys, key)]

    def under(self, prefix: str) -> list[KeyValue]:
        if not prefix:
            return [self._items[key] for key in self._keys]
        first = bisect_left(self._keys, prefix)
        after = bisect_left(self._keys, prefix[:-1] + chr(ord(prefix[-1]) + 1), first)
        return [self._items[key] for key in self._keys[first:after]]
