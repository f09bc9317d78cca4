"""What both backends must do alike, on pandas partitions everywhere and on cuDF partitions where there is a GPU."""
