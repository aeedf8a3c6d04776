//! Desired state: the merge of all clusters' objects.
