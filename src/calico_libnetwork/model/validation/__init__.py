"""What Calico's strict validator accepts, and the form in which it is stored.

``validate`` takes a document as a user wrote it. All problems are found in one go, each named by its path; defaults
are filled in and the fields put into Calico's order, so that what we write is what calicoctl would have written.
"""

from calico_libnetwork.model.validation.documents import TIER_LABEL, Valid, validate
from calico_libnetwork.model.validation.pools import pools_in_the_way
from calico_libnetwork.model.validation.problems import InvalidDocument, Problem

__all__ = ["TIER_LABEL", "InvalidDocument", "Problem", "Valid", "pools_in_the_way", "validate"]
