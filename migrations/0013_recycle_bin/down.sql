DROP TABLE monitor_previews;
DROP TABLE monitor_recycle_bin;
