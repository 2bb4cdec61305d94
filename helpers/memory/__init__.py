"""Will it fit: shapes, predicted peaks, layouts, disk."""
